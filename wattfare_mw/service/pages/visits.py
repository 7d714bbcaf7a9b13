"""One request to a page: its signed-in payer, the cookie of its forms, and its fields."""

from __future__ import annotations

import re

from starlette.requests import Request

from . import cookies, forms
from .signed_in import SignIn, signed_in

_COOKIE = re.compile(r"[A-Za-z0-9_-]{43}")


class Visit:
    """The data of one request to a page.

    Attributes:
        sign_in: the payer; None without a sign-in.
        form: the fields of a POST. They are set only if the form is ours.
        new_cookie: a cookie to set, because a form of the page is bound to it.
    """

    def __init__(self, sign_in: SignIn | None = None, cookie: str | None = None) -> None:
        self.sign_in = sign_in
        self.cookie = cookie
        self.form: dict[str, str] = {}
        self.new_cookie: str | None = None

    def cookie_for_forms(self) -> str:
        """The cookie that the page's forms are bound to: a new one if there is none."""
        if self.cookie is None:
            self.cookie = self.new_cookie = forms.new_cookie()
        return self.cookie


async def begin_visit(request: Request) -> Visit:
    """Create the visit of this request from its cookies, and store it with the request."""
    sign_in = await signed_in(request)
    if sign_in is not None:
        cookie = cookies.read(request, cookies.SIGN_IN)
    else:
        cookie = cookies.read(request, cookies.VISIT)
        if cookie is not None and not _COOKIE.fullmatch(cookie):
            cookie = None
    visit = request.scope["wattfare.visit"] = Visit(sign_in, cookie)
    return visit


def visit_of(request: Request) -> Visit:
    """The visit that :func:`begin_visit` has created. If it has failed, a visit without a
    sign-in."""
    return request.scope.get("wattfare.visit") or Visit()
