"""Creates and compares the keys of apps. A secret key is shown once and stored as a hash."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

import msgspec

from .records import App, Mode

_SECRET_KEY = re.compile(r"sk_(?:test|live)_([0-9a-z]{1,64})_.+", re.DOTALL)


class AppKeys(msgspec.Struct, rename="camel", frozen=True):
    """The keys of a new app. The secret key is shown only once."""

    app_id: str
    publishable_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"AppKeys({self.app_id!r}, publishable_key={self.publishable_key!r})"


class NewKey(msgspec.Struct, rename="camel", frozen=True):
    """A second secret key for an app. It is shown only once."""

    app_id: str
    secret_key: str

    def __repr__(self) -> str:
        return f"NewKey({self.app_id!r})"


def new_app(name: str, mode: Mode) -> tuple[App, AppKeys]:
    """Create an app and its keys."""
    app_id = secrets.token_hex(8)
    secret_key = new_secret_key(app_id, mode)
    publishable_key = f"pk_{mode}_{app_id}_{secrets.token_hex(24)}"
    app = App(app_id, name, mode, digest(secret_key), publishable_key)
    return app, AppKeys(app_id, publishable_key, secret_key)


def new_secret_key(app_id: str, mode: Mode) -> str:
    """A new secret key for this app."""
    # The key has 192 random bits, so it cannot be guessed, and a plain hash is enough.
    return f"sk_{mode}_{app_id}_{secrets.token_hex(24)}"


def new_grant_token() -> str:
    """A new token for a grant."""
    return f"gt_{secrets.token_hex(24)}"


def digest(secret: str) -> str:
    """The stored hash of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def app_id_of(secret_key: str) -> str | None:
    """The id of the app in a secret key; None if the text is not a secret key."""
    match = _SECRET_KEY.fullmatch(secret_key)
    return match[1] if match else None


def opens(secret_key: str, app: App) -> bool:
    """True if this is one of the app's secret keys. An app has two valid keys while it switches to
    a new one. The hash includes the key's mode and the app's id."""
    given = digest(secret_key)
    # Always make both comparisons, so that the time does not show which key matched.
    is_newer = hmac.compare_digest(given, app.secret_hash)
    is_older = hmac.compare_digest(given, app.other_secret_hash or app.secret_hash)
    return is_newer or is_older
