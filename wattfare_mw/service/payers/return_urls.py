"""Checks where a browser returns after an approval: only to an origin that the app has registered.

Origins are compared as text, so each is stored exactly as browsers send it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from urllib.parse import parse_qsl, urlencode

from ...errors import invalid_request
from ..records import Mode

#: The maximum length of a return URL, in characters.
MAX_RETURN_URL = 2000
#: The parameters that the service adds to a return URL.
APPROVAL = "approval"
CODE = "code"
DENIED = "denied"
_OURS = frozenset({APPROVAL, CODE, DENIED})

_DEFAULT_PORTS = {"http": 80, "https": 443}
#: Browsers change some characters, such as a backslash to a slash. These are not allowed, so that a
#: URL has only one meaning.
_VISIBLE = re.compile(r"[!#-;=?-\[\]-~]+")
_ORIGIN = re.compile(
    r"(https?)://([a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?"
)
_TEST_HOSTS = frozenset({"localhost", "127.0.0.1"})


def check(url: str, origins: Collection[str], mode: Mode) -> str:
    """Check a return URL and return its origin.

    Args:
        url: the URL from the app's page.
        origins: the registered origins of the app.
        mode: a test app may also use any port of this machine over ``http``.

    Raises:
        WattfareError: ``invalid_request``, 400 for an invalid URL, 403 for another origin.
    """
    if not _VISIBLE.fullmatch(url) or len(url) > MAX_RETURN_URL:
        raise _not_a_url(
            f"it must have 1 to {MAX_RETURN_URL:,} characters of visible ASCII, and none of them "
            'may be ", <, > or a backslash'
        )
    if "#" in url:
        raise _not_a_url("it must not have a fragment")
    scheme, separator, rest = url.partition("://")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    if not separator or scheme not in _DEFAULT_PORTS:
        raise _not_a_url("it must begin with https:// or http://")
    if "@" in authority:
        raise _not_a_url("it must not have a user name or a password")
    found = _ORIGIN.fullmatch(f"{scheme}://{authority}")
    if found is None:
        raise _not_a_url("its host must be in lower case, and its port must be a number")
    host, port = found[2], found[3]
    if port is not None and (port.startswith("0") or int(port) > 65535):
        raise _not_a_url("its port must be a number from 1 to 65535")
    query = url.partition("?")[2]  # `urlsplit` fails with some hosts in brackets
    names = {name for name, _ in parse_qsl(query, keep_blank_values=True)}
    if names & _OURS:
        raise _not_a_url("its query must not have `approval`, `code` or `denied`")
    default = port is None or int(port) == _DEFAULT_PORTS[scheme]
    origin = f"{scheme}://{host}" if default else f"{scheme}://{host}:{port}"
    if not allows(origin, origins, mode):
        raise invalid_request(
            "The origin of returnUrl is not registered for this app: register it with "
            "`wattfare apps create … --origin`.",
            403,
        )
    return origin


def allows(origin: str, origins: Collection[str], mode: Mode) -> bool:
    """True if this origin belongs to the app."""
    if origin in origins:
        return True
    found = _ORIGIN.fullmatch(origin)
    return mode == "test" and found is not None and found[1] == "http" and found[2] in _TEST_HOSTS


def with_answer(url: str, answer: Mapping[str, str]) -> str:
    """The return URL with the answer added to its query."""
    separator = "&" if "?" in url else "?"
    return f"{url}{separator}{urlencode(answer)}"


def _not_a_url(fault: str) -> Exception:
    return invalid_request(f"`returnUrl` must be the URL of one of the app's pages: {fault}.")
