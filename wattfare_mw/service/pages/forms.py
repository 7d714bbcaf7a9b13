"""Reads the forms of the pages, within limits and only from our own pages.

A form contains a token that only its browser can have: an HMAC keyed with the browser's cookie.
This is the cookie of the sign-in, or else one that the page with the form sets.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64encode
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from ... import receiving
from ...errors import invalid_request
from ..api.bodies import MAX_BODY_BYTES, headers_of
from ..api.state import state_of

#: The name of the field with the token.
FIELD = "csrf"
#: The maximum number of fields of a form.
MAX_FIELDS = 100
FORM_TYPE = "application/x-www-form-urlencoded"
_COOKIE_BYTES = 32


def new_cookie() -> str:
    """A value for the cookie that binds forms before a sign-in."""
    return secrets.token_urlsafe(_COOKIE_BYTES)


def token(cookie: str) -> str:
    """The form token for this cookie."""
    return urlsafe_b64encode(hmac.digest(cookie.encode(), b"form", "sha256"))[:32].decode()


def check_sender(request: Request) -> None:
    """Refuse a form from another site.

    Raises:
        WattfareError: ``invalid_request``, 403.
    """
    headers = headers_of(request.scope)
    site = headers.first("sec-fetch-site")
    origin = headers.first("origin")
    # A browser also sends "null" for our own forms, because the pages have Referrer-Policy:
    # no-referrer.
    if site not in (None, "same-origin", "none") or (
        origin not in (None, "null", state_of(request).public_url)
    ):
        raise invalid_request(
            "This form was sent by another site, so nothing was changed. Open the page at "
            f"{state_of(request).public_url} and try again.",
            403,
        )


def check_token(form: dict[str, str], cookie: str | None) -> None:
    """Refuse a form without the token for this cookie.

    Raises:
        WattfareError: ``invalid_request``, 403.
    """
    given = form.get(FIELD, "")
    if cookie is None or not hmac.compare_digest(given.encode(), token(cookie).encode()):
        raise invalid_request(
            "This form is out of date, so nothing was changed. Go back, reload the page and try "
            "again. The page needs cookies.",
            403,
        )


async def read_form(request: Request) -> dict[str, str]:
    """The fields of the form that this request sends.

    Raises:
        WattfareError: ``invalid_request`` with 413 or 415, or if the form is invalid.
    """
    headers = headers_of(request.scope)
    receiving.check_length(headers.first("content-length"), MAX_BODY_BYTES)
    body = await receiving.read_body(request.receive, MAX_BODY_BYTES, ClientDisconnect)
    kind = (headers.first("content-type") or "").split(";")[0].strip().lower()
    if body and kind != FORM_TYPE:
        raise invalid_request(f"Send the form as {FORM_TYPE}.", 415)
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise invalid_request("The form cannot be read.") from None
    form = dict(pairs)
    if any("\0" in text for pair in pairs for text in pair):
        raise invalid_request("The form cannot be read.")  # PostgreSQL cannot store such text
    if len(form) != len(pairs):
        raise invalid_request("The form has a field twice.")
    return form
