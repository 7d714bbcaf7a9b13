"""Proxies and certificates from the environment."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import SetupError

if TYPE_CHECKING:
    import ssl

HTTP_PROXIES = frozenset({"http", "https"})
SOCKS_PROXIES = frozenset({"socks5", "socks5h"})


class Proxies:
    """The proxies in the environment. The proxy for each URL is looked up once.

    Args:
        schemes: the kinds of proxies that the transport can use.
    """

    def __init__(self, schemes: frozenset[str] = HTTP_PROXIES | SOCKS_PROXIES) -> None:
        self._schemes = schemes
        self._known: dict[tuple[str, str], str | None] = {}

    def of(self, url: str) -> str | None:
        """The URL of the proxy for this URL, or None.

        Raises:
            SetupError: the environment names a proxy that cannot be used.
        """
        parts = urlsplit(url)
        service = parts.scheme, parts.netloc
        try:
            return self._known[service]
        except KeyError:
            proxy = _proxy_of(*service)
            if proxy is not None and not _usable(proxy, self._schemes):
                raise unusable_proxy(url) from None
            self._known[service] = proxy
            return proxy


def unusable_proxy(url: str) -> SetupError:
    """The error for a URL whose proxy cannot be used. It does not contain the proxy's URL, which
    may have a password."""
    scheme = urlsplit(url).scheme
    names = [f"{scheme}_proxy", "all_proxy"]
    # As in urllib, the variable in lower case takes precedence.
    found = sorted(
        (name for name, value in os.environ.items() if value and name.lower() in names),
        key=lambda name: (names.index(name.lower()), name.isupper()),
    )
    where = f"The variable {found[0]} names" if found else "The system's settings name"
    return SetupError(
        f"{where} a proxy that cannot be used here. Write it as http://host:port, unset it, or add"
        " the service's host to NO_PROXY. A socks5:// proxy needs httpx[socks], and an"
        " AsyncWattfare then also needs http_client=httpx.AsyncClient."
    )


def _usable(proxy: str, schemes: frozenset[str]) -> bool:
    try:
        parts = urlsplit(proxy)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port or IPv6 address
        return False


def _proxy_of(scheme: str, host: str) -> str | None:
    if host.startswith("["):  # an IPv6 address: NO_PROXY has it without brackets
        address, _, port = host[1:].partition("]")
        host = f"{address}:{port.removeprefix(':')}"
    else:
        address, _, port = host.partition(":")
    if urllib.request.proxy_bypass(host) or _bypassed(address, port.removeprefix(":")):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _bypassed(host: str, port: str) -> bool:
    """True if NO_PROXY contains this host in a form that urllib does not support: as a network
    (``10.0.0.0/8``), in brackets (``[::1]:8080``), or with a star (``*.internal``)."""
    for entry in _no_proxy():
        if entry.startswith("*."):
            if host.lower().endswith(entry[1:]):
                return True
            continue
        name, _, entry_port = entry.removeprefix("[").partition("]")
        if entry_port.removeprefix(":") in ("", port) and _in_network(host, name):
            return True
    return False


def _no_proxy() -> Iterator[str]:
    for entry in urllib.request.getproxies_environment().get("no", "").split(","):
        if entry := entry.strip().lower():
            yield entry


def _in_network(host: str, network: str) -> bool:
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:  # one of them is a host name
        return False


@cache
def ssl_context() -> ssl.SSLContext:
    """The TLS certificates of all transports: SSL_CERT_FILE and SSL_CERT_DIR, or else certifi's
    bundle.

    Raises:
        SetupError: a variable names a file or a folder that cannot be used.
    """
    import httpx

    names = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)][:1]
    for name in names:
        path = os.environ[name]
        if not (os.path.isfile(path) if name == "SSL_CERT_FILE" else os.path.isdir(path)):
            raise _unusable_path(name)
    try:
        return httpx.create_ssl_context()
    except (OSError, ValueError):  # includes SSLError
        # Python's ssl module writes to the file in SSLKEYLOGFILE.
        if os.environ.get("SSLKEYLOGFILE"):
            names.append("SSLKEYLOGFILE")
        if not names:
            raise
        raise _unusable_path(*names) from None


def _unusable_path(*names: str) -> SetupError:
    where = " or ".join(f"{name}={os.environ[name]!r}" for name in names)
    return SetupError(
        f"The environment variable {where} cannot be used for TLS. Set it to the path of a file"
        " with certificates (SSL_CERT_FILE) or of a folder with certificates (SSL_CERT_DIR), or"
        " unset it."
    )
