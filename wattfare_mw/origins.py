"""Checks the origin of a request, and makes the CORS headers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from .errors import invalid_request
from .web import Request


def cors_headers(request: Request, allowed_origins: Collection[str]) -> Mapping[str, str]:
    """The headers that let a page of an allowed origin read the answer."""
    if not allowed_origins:
        return {}
    origin = request.headers.common.get("origin")
    if origin is None or origin not in allowed_origins:
        return {"vary": "Origin"}
    return {
        "vary": "Origin",
        "access-control-allow-origin": origin,
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "retry-after, x-request-id, x-should-retry,"
        " x-wattfare-max-tokens, x-wattfare-reserved",
    }


def refuse_other_sites(request: Request, allowed_origins: Collection[str]) -> None:
    """Raise a 403 if a browser sends this request for another site. The request has the user's
    cookies, but it may come from a page of that site and not from the user. Extensions and packaged
    apps count as other sites."""
    headers = request.headers.common
    origin = headers.get("origin")
    if origin is not None and origin in allowed_origins:
        return
    site = headers.get("sec-fetch-site")
    if site is not None:
        # A browser sends "none" for an action of its user, and for an extension.
        same = site == "same-origin" or (site == "none" and not _of_other_scheme(origin))
    elif origin is not None:
        same = _same_host(origin, request.headers.get("host", ""))
    else:
        return  # not a browser, which would send one of them
    if not same:
        raise invalid_request(
            "This request comes from another site. An app that wants it lists that site's origin"
            " in allowed_origins. A proxy in front of the app must pass on the Host header, with"
            " its port.",
            403,
        )


_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
#: Pages of these schemes have the origin "null", which any page can have.
_OPAQUE = frozenset({"about", "blob", "data", "file", "javascript"})
#: Pages of these schemes send no requests.
_NO_PAGES = frozenset({"ftp", "ws", "wss"})


def check_origins(origins: Iterable[str]) -> Collection[str]:
    """Check ``allowed_origins``. Each must be exactly as a browser, an extension
    (``chrome-extension://…``) or a packaged app (``capacitor://localhost``) sends it. A single
    string is one origin.

    Raises:
        ValueError: no request can have this origin. The message says what to write.
    """
    checked = [origins] if isinstance(origins, str) else list(origins)
    for origin in checked:
        fault = fault_in(origin)
        if fault is not None:
            raise ValueError(f"allowed_origins: {origin!r} {fault}")
    return frozenset(checked)


def fault_in(origin: str) -> str | None:
    """What is wrong with an origin, or None."""
    if "*" in origin:
        return "is a wildcard: name each origin"
    if origin == "null":
        return "is the origin of any page that hides its own: it cannot be allowed"
    scheme, separator, authority = origin.partition("://")
    if scheme in _OPAQUE or origin.partition(":")[0] in _OPAQUE:
        return "is sent as 'null', which cannot be allowed"
    if not separator or not _SCHEME.fullmatch(scheme) or scheme in _NO_PAGES:
        return "is no origin such as 'https://app.example.com'"
    if "/" in authority:
        return f"has a path: an origin ends with its host, '{scheme}://{authority.split('/')[0]}'"
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return "is no origin such as 'https://app.example.com': a host is ASCII, 'xn--…' if need be"
    host, port = match.groups()
    if port is not None and (port.startswith("0") or int(port) > 65535):
        return f"has a port that is none: {port}"
    default = _DEFAULT_PORTS.get(scheme)
    if default is None:
        return None  # its host may have capitals, as for Safari's extensions
    if host != host.lower():
        return f"is sent in lower case: '{origin.lower()}'"
    if port == str(default):
        return f"is sent without its port, the default one: '{scheme}://{host}'"
    return None


def _of_other_scheme(origin: str | None) -> bool:
    """True if this is the origin of something other than a web page, such as an extension."""
    if origin is None or origin == "null":
        return False
    return origin.partition("://")[0] not in _DEFAULT_PORTS


def _same_host(origin: str, host: str) -> bool:
    # Host and port only: behind a proxy that ends TLS the app does not see the scheme.
    scheme, _, authority = origin.partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    if default is None:
        return False
    theirs = _host_and_port(authority, default)
    return theirs is not None and theirs == _host_and_port(host, default)


def _host_and_port(authority: str, default_port: int) -> tuple[str, int] | None:
    match = _AUTHORITY.fullmatch(authority)
    return match and (match[1].lower(), int(match[2] or default_port))
