"""Reads the credential of a request: a secret key, a publishable key or a session token."""

from __future__ import annotations

from ...errors import WattfareAuthError
from ...headers import Headers
from .. import keys
from ..ledger.store import Store
from ..records import App
from ..tokens import Session, Signer
from .parameters import is_visible


async def app_by_secret_key(headers: Headers, store: Store) -> App:
    """The app whose secret key the request has.

    Raises:
        WattfareAuthError: the credential is missing, has another kind, or is invalid.
    """
    credential = _bearer(headers)
    app_id = keys.app_id_of(credential)
    if app_id is None:
        raise WattfareAuthError("This call needs the app's secret key, sk_….")
    app = await store.app_by_id(app_id)
    if app is None or not keys.opens(credential, app):
        raise WattfareAuthError(
            "This service does not know this secret key. To list its apps, type: wattfare apps list"
        )
    return app


async def app_by_publishable_key(headers: Headers, store: Store) -> App:
    """The app whose publishable key the request has.

    Raises:
        WattfareAuthError: the credential is missing, has another kind, or is invalid.
    """
    credential = _bearer(headers)
    if not credential.startswith("pk_"):
        raise WattfareAuthError("This call needs the app's publishable key, pk_….")
    app = await store.app_by_publishable_key(credential)
    if app is None:
        raise WattfareAuthError("The publishable key is invalid.")
    return app


def is_publishable(headers: Headers) -> bool:
    """True if the request has a publishable key, which may be invalid."""
    return _bearer(headers).startswith("pk_")


async def session_of(headers: Headers, signer: Signer, store: Store) -> tuple[Session, App]:
    """The session whose token the request has, and its app.

    Raises:
        WattfareAuthError: the token is missing or invalid, or its app does not exist.
    """
    credential = _bearer(headers)
    if credential.startswith(("sk_", "pk_")):
        raise WattfareAuthError("This call needs a session token, not a key.")
    session = signer.read(credential)
    app = await store.app_by_id(session.app_id)
    if app is None:
        raise WattfareAuthError("The session token is not valid.")
    return session, app


def _bearer(headers: Headers) -> str:
    value = headers.single("authorization")
    if value is None:
        raise WattfareAuthError("A credential is missing. Send the header Authorization: Bearer ….")
    scheme, _, rest = value.partition(" ")
    credential = rest.strip(" ")
    if scheme.lower() != "bearer" or not is_visible(credential):
        raise WattfareAuthError("Send the credential as the header Authorization: Bearer ….")
    return credential
