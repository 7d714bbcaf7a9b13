"""The URL at which people open the service's pages. All links to pages begin with it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from ..errors import invalid_request

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
#: Browsers treat a host as an IPv4 address if its last label is such a number.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def check(url: str) -> str:
    """Check a public URL. Returns its origin, such as ``https://wattfare.example.com``.

    Raises:
        WattfareError: ``invalid_request``; the message says what is wrong with the URL.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _refusal("it has characters that are not visible ASCII")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refusal("it cannot be read") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise _refusal("it does not begin with https:// or http://")
    if "@" in parts.netloc:
        raise _refusal("it has a user name or a password")
    if parts.path not in ("", "/") or "?" in url or "#" in url:
        raise _refusal("it has a path, a query or a fragment")
    host = (parts.hostname or "").lower()
    if "[" in parts.netloc or _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise _refusal("it has an IP address, but passkeys need a host name")
    if not _NAME.fullmatch(host) or len(host) > 253 or port == 0:
        raise _refusal("its host or its port is not valid")
    if parts.scheme == "http" and not is_local(host):
        raise _refusal("passkeys need https:// for any host except localhost")
    default = port is None or port == _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{host}" if default else f"{parts.scheme}://{host}:{port}"


def of_port(port: int) -> str:
    """The default public URL, for a service on this machine."""
    return check(f"http://localhost:{port}")


def is_local(host: str) -> bool:
    """True for ``localhost`` and its subdomains, which always mean this machine."""
    return host == "localhost" or host.endswith(".localhost")


def _refusal(fault: str) -> Exception:
    return invalid_request(
        f"The public URL (--public-url) cannot be used: {fault}. Use https://name or"
        " http://localhost, with a port if necessary."
    )
