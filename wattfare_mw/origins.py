"""Which sites a browser may call from: the check of a request's origin, and the CORS headers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from .errors import invalid_request
from .web import Request


def cors_headers(request: Request, allowed_origins: Collection[str]) -> Mapping[str, str]:
    """What lets a page of an allowed origin read the answer."""
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
        " x-wattfare-max-tokens",
    }


def refuse_other_sites(request: Request, allowed_origins: Collection[str]) -> None:
    """403 for a browser that acts for another site: its user's cookies come with the request,
    and a page of that site, not the user, may have sent it."""
    headers = request.headers.common
    origin = headers.get("origin")
    if origin is not None and origin in allowed_origins:
        return
    site = headers.get("sec-fetch-site")
    if site is not None:
        same = site in ("same-origin", "none")
    elif origin is not None:
        same = _same_host(origin, request.headers.get("host", ""))
    else:
        return  # no browser: it would send one or the other
    if not same:
        raise invalid_request(
            "This request comes from another site. An app that wants it lists that site's origin"
            " in allowed_origins.",
            403,
        )


_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


def check_origins(origins: Iterable[str]) -> Collection[str]:
    """``allowed_origins``, each as a browser writes it; one may stand alone.

    Raises:
        ValueError: no browser writes one so.
    """
    checked = [origins] if isinstance(origins, str) else list(origins)
    for origin in checked:
        scheme, _, authority = origin.partition("://")
        match = _AUTHORITY.fullmatch(authority)
        port = _DEFAULT_PORTS.get(scheme)
        if match is None or port in (None, int(match[2] or 0)) or authority != authority.lower():
            raise ValueError(
                f"allowed_origins: {origin!r} is no origin such as 'https://app.example.com'"
            )
    return frozenset(checked)


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
