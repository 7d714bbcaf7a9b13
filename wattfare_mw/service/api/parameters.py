"""Reads the headers and the query of a request, which say who pays and how the call is made."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import parse_qsl, unquote_to_bytes

from ...errors import invalid_request
from ...headers import Headers
from ...types import (
    GRANT_HEADER,
    LOW_BUDGET_HEADER,
    MAX_WAIT_SECONDS,
    USER_HEADER,
    WAIT_HEADER,
    check_user_id,
)
from .. import keys
from ..records import IdempotencyKey

#: The header with a key for a call, so that a repeated request does not repeat the call.
KEY_HEADER = "idempotency-key"
#: The longest value of that header, in characters (our choice).
MAX_KEY = 255

_SECONDS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,6})?")
_PERCENT_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})+")


def payer_in_headers(headers: Headers) -> tuple[str | None, str | None]:
    """The payer in the headers: the user's id, or the hash of the grant's token. The other value is
    None.

    Raises:
        WattfareError: ``invalid_request``; there are both headers or neither, or one is malformed.
    """
    user_id = _user_in_header(headers)
    grant = headers.single(GRANT_HEADER)
    if (user_id is None) == (grant is None):
        raise invalid_request("Send exactly one of X-Wattfare-User or X-Wattfare-Grant.")
    return user_id, None if grant is None else keys.digest(grant)


def _user_in_header(headers: Headers) -> str | None:
    value = headers.single(USER_HEADER)
    if value is None:
        return None
    if "%" not in value and is_visible(value):
        return check_user_id(value)
    message = "X-Wattfare-User must be a user id, percent-encoded as UTF-8."
    if not _PERCENT_ENCODED.fullmatch(value):
        raise invalid_request(message)
    try:
        user_id = unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise invalid_request(message) from None
    return check_user_id(user_id)


def user_in_query(query: bytes) -> str:
    """The one ``appUserId`` in the query.

    Raises:
        WattfareError: ``invalid_request``; there is none, or more than one, or it is malformed.
    """
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except (UnicodeDecodeError, ValueError):
        raise invalid_request("The query must be percent-encoded UTF-8.") from None
    found = [value for name, value in pairs if name == "appUserId"]
    if len(found) != 1:
        raise invalid_request("Send exactly one user id: ?appUserId=…")
    return check_user_id(found[0])


def refuses_low_budget(headers: Headers) -> bool:
    """True if the call must be refused when the budget does not cover all of it. Without the
    header, or with ``lower``, the call's token limit is lowered instead.

    Raises:
        WattfareError: ``invalid_request``; the header has another value.
    """
    value = headers.single(LOW_BUDGET_HEADER)
    if value not in (None, "lower", "refuse"):
        raise invalid_request("X-Wattfare-On-Low-Budget must be `lower` or `refuse`.")
    return value == "refuse"


def wait_seconds(headers: Headers) -> float:
    """How long the call may wait for other calls of its payer to release the budget, in seconds.

    Raises:
        WattfareError: ``invalid_request``; the header is not a valid number of seconds.
    """
    value = headers.single(WAIT_HEADER)
    if value is None:
        return 0
    if _SECONDS.fullmatch(value) is None or float(value) > MAX_WAIT_SECONDS:
        raise invalid_request(
            f"X-Wattfare-Wait must be a number of seconds up to {MAX_WAIT_SECONDS}."
        )
    return float(value)


def idempotency_key(headers: Headers, body: bytes) -> IdempotencyKey | None:
    """Hashes of the ``Idempotency-Key`` and the body of this call. None without the header.

    Raises:
        WattfareError: ``invalid_request``; the key is empty or too long, or there are two.
    """
    name = headers.single(KEY_HEADER)
    if name is None:
        return None
    if not 0 < len(name) <= MAX_KEY:
        raise invalid_request(f"Idempotency-Key must be a string of 1 to {MAX_KEY} characters.")
    return IdempotencyKey(keys.digest(name), hashlib.sha256(body).hexdigest())


def is_visible(text: str) -> bool:
    """True if the text is visible ASCII. A regular expression would take ten times as long."""
    return text.isascii() and text.isprintable() and " " not in text and text != ""
