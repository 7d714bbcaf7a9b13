"""Private: checks the origin of a request, and creates the CORS headers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from .errors import invalid_request
from .logs import get_logger
from .web import Request

logger = get_logger("wattfare_mw")

#: Origins that an app would not list. A rule that allows one of them is treated as allowing every
#: origin.
_UNLISTED = tuple(
    f"{scheme}://{host}"
    for scheme in ("https", "http")
    for host in ("wattfare-stranger.com", "wattfare-stranger.org", "wattfare.stranger.invalid")
)
_EXPOSED = "retry-after, x-request-id, x-should-retry, x-wattfare-max-tokens, x-wattfare-reserved"


class AppCors:
    """What the app's own CORS middleware allows. An adapter creates it from the framework's
    settings.

    Settings that allow every origin, such as ``*``, are ignored completely: these paths spend the
    money of the user whose cookie the request has.

    Args:
        is_allowed: returns True if the app's middleware allows this origin.
        credentials: True if it allows cookies. If False, only requests without cookies are
            accepted.
        answers: True if the app's middleware wraps ours, and so adds the CORS headers to our
            responses.
    """

    def __init__(
        self, is_allowed: Callable[[str], bool], *, credentials: bool, answers: bool
    ) -> None:
        self._is_allowed = is_allowed
        self.credentials = credentials
        self.answers = answers
        self.allows_all = any(map(is_allowed, _UNLISTED))
        if self.allows_all:
            logger.warning(
                "The app's CORS settings allow every origin, so Wattfare's paths ignore them."
                " List only the origins that may call these paths, in the CORS settings or in"
                " allowed_origins."
            )

    def allows(self, request: Request, origin: str) -> bool:
        """True if a page of this origin may make this request."""
        return (
            not self.allows_all
            and origin != "null"
            and (self.credentials or "cookie" not in request.headers)
            and self._is_allowed(origin)
        )


FindAppCors = Callable[[Request], AppCors | None]
"""Returns what the app's CORS middleware allows for a request. None if the app has no CORS
middleware."""


class Origins:
    """The other sites whose pages may call our paths: those in ``allowed_origins``, and those that
    the app's own CORS middleware allows.

    Raises:
        ValueError: an origin is invalid. The message says what to write.
    """

    def __init__(self, listed: Iterable[str], app_cors: FindAppCors | None = None) -> None:
        self._listed = check_origins(listed)
        self._app_cors = app_cors
        #: True if the app may allow other sites. Most apps do not.
        self.any = bool(self._listed) or app_cors is not None

    def refuse_others(self, request: Request) -> None:
        """Raise a 403 if the request comes from a page of another site. A browser may add the
        user's cookies to such a request, although the user did not make it. Extensions and packaged
        apps count as other sites."""
        headers = request.headers.common
        origin = headers.get("origin")
        if origin is not None and origin in self._listed:
            return
        site = headers.get("sec-fetch-site")
        if site is not None:
            # A browser sends "none" for an action of the user, and for a request of an extension.
            same = site == "same-origin" or (site == "none" and not _of_other_scheme(origin))
        elif origin is not None:
            same = _same_host(origin, request.headers.get("host", ""))
        else:
            return  # not a browser: a browser would send one of them
        if not same and not self.allow(request):
            raise invalid_request(
                "This request comes from another site. To allow it, add the site's origin to"
                " allowed_origins. If it comes from the app's own page, check that the proxy in"
                " front of the app passes on the Host header, with its port.",
                403,
            )

    def refuse_readers(self, request: Request) -> None:
        """Raise a 403 if the request comes from a page of another site, and the app's own CORS
        middleware would let every site read the answer."""
        cors = self._find(request)
        if (
            cors is not None
            and cors.answers
            and cors.allows_all
            and "origin" in request.headers.common
        ):
            self.refuse_others(request)

    def allow(self, request: Request) -> bool:
        """True if a page of this request's origin may make the request."""
        origin = request.headers.common.get("origin")
        if origin is None:
            return False
        if origin in self._listed:
            return True
        cors = self._find(request)
        return cors is not None and cors.allows(request, origin)

    def headers(self, request: Request) -> Mapping[str, str]:
        """The headers that let a page of an allowed origin read the answer."""
        origin = request.headers.common.get("origin")
        cors = self._find(request)
        allows = origin is not None and cors is not None and cors.allows(request, origin)
        if cors is not None and cors.answers and (allows or not self._listed):
            return {}
        if origin is not None and (allows or origin in self._listed):
            with_cookies = origin in self._listed or (cors is not None and cors.credentials)
            return {
                "vary": "Origin",
                "access-control-allow-origin": origin,
                **({"access-control-allow-credentials": "true"} if with_cookies else {}),
                "access-control-expose-headers": _EXPOSED,
            }
        return {"vary": "Origin"} if self._listed or cors is not None else {}

    def _find(self, request: Request) -> AppCors | None:
        return None if self._app_cors is None else self._app_cors(request)


_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
#: Pages with these schemes have the origin "null". Any page can have this origin.
_OPAQUE = frozenset({"about", "blob", "data", "file", "javascript"})
#: Pages with these schemes do not send requests.
_NO_PAGES = frozenset({"ftp", "ws", "wss"})


def check_origins(origins: Iterable[str]) -> Collection[str]:
    """Check ``allowed_origins``. Each origin must have exactly the form in which a browser, an
    extension (``chrome-extension://…``) or a packaged app (``capacitor://localhost``) sends it. A
    single string is one origin.

    Raises:
        TypeError: the origins are not a collection of strings.
        ValueError: an origin is invalid. The message says what to write.
    """
    given: Any = [origins] if isinstance(origins, str) else origins
    checked: list[Any] | None = [*given] if isinstance(given, Iterable) else None
    if checked is None or not all(isinstance(origin, str) for origin in checked):
        raise TypeError("allowed_origins must be a list of origins, such as ['https://a.example']")
    for origin in checked:
        fault = fault_in(origin)
        if fault is not None:
            raise ValueError(f"allowed_origins: {origin!r} {fault}")
    return frozenset(checked)


def fault_in(origin: str) -> str | None:
    """The end of a sentence that says what is wrong with an origin. None if the origin is valid."""
    if "*" in origin:
        return "is a wildcard: list each origin"
    if origin == "null":
        return "is the origin of every page that hides its origin, so it cannot be allowed"
    scheme, separator, authority = origin.partition("://")
    if scheme in _OPAQUE or origin.partition(":")[0] in _OPAQUE:
        return "cannot be allowed: browsers send such an origin as 'null'"
    if not separator or not _SCHEME.fullmatch(scheme) or scheme in _NO_PAGES:
        return "is not an origin such as 'https://app.example.com'"
    if "/" in authority:
        return f"has a path: an origin ends with its host, '{scheme}://{authority.split('/')[0]}'"
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return (
            "is not an origin such as 'https://app.example.com' or"
            " 'https://xn--bcher-kva.example': write only a scheme, an ASCII host and a port"
        )
    host, port = match.groups()
    if port is not None and (port.startswith("0") or int(port) > 65535):
        return f"has an invalid port: {port}"
    default = _DEFAULT_PORTS.get(scheme)
    if default is None:
        return None  # the host of a Safari extension has capitals
    if host != host.lower():
        return f"must be in lower case: '{origin.lower()}'"
    if port == str(default):
        return f"must not have the default port: '{scheme}://{host}'"
    return None


def _of_other_scheme(origin: str | None) -> bool:
    """True if this is the origin of something other than a web page, such as an extension."""
    if origin is None or origin == "null":
        return False
    return origin.partition("://")[0] not in _DEFAULT_PORTS


def _same_host(origin: str, host: str) -> bool:
    # Compare only the host and the port: behind a proxy that ends TLS, the app does not see the
    # scheme.
    scheme, _, authority = origin.partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    if default is None:
        return False
    theirs = _host_and_port(authority, default)
    return theirs is not None and theirs == _host_and_port(host, default)


def _host_and_port(authority: str, default_port: int) -> tuple[str, int] | None:
    match = _AUTHORITY.fullmatch(authority)
    return match and (match[1].lower(), int(match[2] or default_port))
