"""What the environment says of the way to a service: proxies and certificates."""

from __future__ import annotations

import urllib.request
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl


class Proxies:
    """The proxies that the environment names, each looked for once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str | None] = {}

    def of(self, url: str) -> str | None:
        """The URL of the proxy for this one, None for none."""
        parts = urlsplit(url)
        service = parts.scheme, parts.netloc
        try:
            return self._known[service]
        except KeyError:
            proxy = self._known[service] = _proxy_of(*service)
            return proxy


def _proxy_of(scheme: str, host: str) -> str | None:
    if host.startswith("["):  # an address of version 6, which stands in lists without brackets
        address, _, port = host[1:].partition("]")
        host = f"{address}:{port.removeprefix(':')}"
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


@cache
def ssl_context() -> ssl.SSLContext:
    """SSL_CERT_FILE and SSL_CERT_DIR, else certifi's bundle: one rule for all transports."""
    import httpx

    return httpx.create_ssl_context()
