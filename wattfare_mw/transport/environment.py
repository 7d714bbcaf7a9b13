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
        self._known: dict[str, str | None] = {}

    def of(self, url: str) -> str | None:
        """The URL of the proxy for this one, None for none."""
        try:
            return self._known[url]
        except KeyError:
            if len(self._known) > 64:  # users' ids stand in the URLs of their statuses
                self._known.clear()
        parts = urlsplit(url)
        proxy = self._known[url] = _proxy_of(parts.scheme, parts.netloc)
        return proxy


def _proxy_of(scheme: str, host: str) -> str | None:
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
