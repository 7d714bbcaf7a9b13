"""The cookies of the pages. Scripts cannot read them, and forms of other sites do not send them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ..api.state import state_of

#: The cookie of a sign-in.
SIGN_IN = "wattfare"
#: The cookie that binds forms before a sign-in.
VISIT = "wattfare-visit"


def name_of(kind: str, public_url: str) -> str:
    """The full name of a cookie. With TLS, the prefix ``__Host-`` makes browsers refuse a cookie
    from another host or from a page without TLS."""
    return f"__Host-{kind}" if public_url.startswith("https:") else kind


def read(request: Request, kind: str) -> str | None:
    """The value of our cookie; None if the request does not have exactly one.

    Starlette strips all white space from a name. Another host such as ``https://blog.example.com``
    can set a cookie for ``example.com`` whose name begins with a no-break space. Browsers do not
    recognize the prefix ``__Host-`` in it, so this code must not recognize it either. Our cookie
    has the shortest path, so a second cookie with the same name is not ours.
    """
    name = name_of(kind, state_of(request).public_url)
    found: list[str] = []
    for header in request.headers.getlist("cookie"):
        for part in header.split(";"):
            given, separator, value = part.strip(" \t").partition("=")
            if separator and given == name:
                found.append(value)
    return found[0] if len(found) == 1 else None


def set_cookie(
    request: Request, response: Response, kind: str, value: str, *, max_age: int | None = None
) -> None:
    """Set a cookie.

    Args:
        max_age: how long the browser keeps it, in seconds; None: until the browser is closed.
    """
    public_url = state_of(request).public_url
    response.set_cookie(
        name_of(kind, public_url),
        value,
        max_age=max_age,
        path="/",
        secure=public_url.startswith("https:"),
        httponly=True,
        samesite="lax",
    )


def delete_cookie(request: Request, response: Response, kind: str) -> None:
    """Delete a cookie from the browser."""
    set_cookie(request, response, kind, "", max_age=0)
