"""Who asks, and for whom: the credentials and the ids that come with a request."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote_to_bytes

from ...errors import WattfareAuthError, invalid_request
from ...types import GRANT_HEADER, LOW_BUDGET_HEADER, USER_HEADER, check_user_id
from .. import keys
from ..keys import App
from ..ledger.rules import Key
from ..tokens import Session, Signer

if TYPE_CHECKING:
    from ..ledger.store import Store
    from .framing import Fields

#: Names a call, so that a repeat of it is not made again.
KEY_HEADER = b"idempotency-key"
#: Its length, in characters (ours).
MAX_KEY = 255

_USER, _GRANT, _LOW = (name.encode() for name in (USER_HEADER, GRANT_HEADER, LOW_BUDGET_HEADER))
_PERCENT_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})+")


def user_in_header(fields: Fields) -> str | None:
    """The user that the header names, or None where there is no such header."""
    value = fields.single(_USER)
    if value is None:
        return None
    if "%" not in value and _is_visible(value):
        return check_user_id(value)
    message = "X-Wattfare-User is a user id, percent-encoded as UTF-8."
    if not _PERCENT_ENCODED.fullmatch(value):
        raise invalid_request(message)
    try:
        user_id = unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise invalid_request(message) from None
    return check_user_id(user_id)


def user_in_query(query: bytes) -> str:
    """The one ``appUserId`` in the query."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except (UnicodeDecodeError, ValueError):
        raise invalid_request("The query is percent-encoded UTF-8.") from None
    found = [value for name, value in pairs if name == "appUserId"]
    if len(found) != 1:
        raise invalid_request("Name one user: ?appUserId=…")
    return check_user_id(found[0])


def grant_in_header(fields: Fields) -> str | None:
    """The grant token in the header, or None where there is no such header."""
    return fields.single(_GRANT)


def refuses_low_budget(fields: Fields) -> bool:
    """Is the call to be refused where the budget does not pay for all that it asks for? Without
    the header, or with ``lower``, its limit is lowered."""
    value = fields.single(_LOW)
    if value not in (None, "lower", "refuse"):
        raise invalid_request("X-Wattfare-On-Low-Budget is `lower` or `refuse`.")
    return value == "refuse"


def idempotency_key(fields: Fields, body: bytes) -> Key | None:
    """The ``Idempotency-Key`` of this call, of which only hashes go further.

    Raises:
        WattfareError: ``invalid_request``; it is empty, too long, or there are two.
    """
    name = fields.single(KEY_HEADER)
    if name is None:
        return None
    if not 0 < len(name) <= MAX_KEY:
        raise invalid_request(f"Idempotency-Key is a string of 1 to {MAX_KEY} characters.")
    return Key(keys.digest(name), hashlib.sha256(body).hexdigest())


async def app_by_secret_key(fields: Fields, store: Store) -> App:
    """The app whose secret key came with this request.

    Raises:
        WattfareAuthError: none did.
    """
    credential = _bearer(fields)
    app_id = keys.app_id_of(credential)
    if app_id is None:
        raise WattfareAuthError("This call takes the app's secret key, sk_….")
    app = await store.app_by_id(app_id)
    if app is None or not keys.opens(credential, app):
        raise WattfareAuthError("The secret key is not valid.")
    return app


async def app_by_publishable_key(fields: Fields, store: Store) -> App:
    """The app whose publishable key came with this request.

    Raises:
        WattfareAuthError: none did.
    """
    credential = _bearer(fields)
    if not credential.startswith("pk_"):
        raise WattfareAuthError("This call takes the app's publishable key, pk_….")
    app = await store.app_by_publishable_key(credential)
    if app is None:
        raise WattfareAuthError("The publishable key is not valid.")
    return app


async def session_of(fields: Fields, signer: Signer, store: Store) -> tuple[Session, App]:
    """The session whose token came with this request, and its app.

    Raises:
        WattfareAuthError: none did, or the app is not one of this service.
    """
    credential = _bearer(fields)
    if credential.startswith(("sk_", "pk_")):
        raise WattfareAuthError("This call takes a session token, not a key.")
    session = signer.read(credential)
    app = await store.app_by_id(session.app_id)
    if app is None:
        raise WattfareAuthError("The session token is not valid.")
    return session, app


def _bearer(fields: Fields) -> str:
    value = fields.single(b"authorization")
    if value is None:
        raise WattfareAuthError("A credential is missing: Authorization: Bearer ….")
    scheme, _, rest = value.partition(" ")
    credential = rest.strip(" ")
    if scheme.lower() != "bearer" or not _is_visible(credential):
        raise WattfareAuthError("The credential is sent as Authorization: Bearer ….")
    return credential


def _is_visible(text: str) -> bool:
    """Is it of ASCII's visible characters? (A regular expression takes ten times as long.)"""
    return text.isascii() and text.isprintable() and " " not in text and text != ""
