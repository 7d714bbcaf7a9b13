"""The operator's actions on apps: list apps, change their keys and origins, and delete them. Each
function is one transaction, for any database."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import Connection as Sql
from sqlalchemy import Row, delete, func, insert, select, update

from ...errors import WattfareError, invalid_request
from ...origins import fault_in
from .. import keys
from ..records import App, Mode
from . import accounts, schema
from .clock import seconds

#: Hosts of the developer's own machine, on which a page may be served without TLS.
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_apps = schema.apps
_origins = schema.app_origins


class AppSummary(msgspec.Struct, rename="camel", frozen=True):
    """An app in a list.

    Attributes:
        secret_keys: the number of valid secret keys. It is 2 while the app switches to a new key.
        created_at: in Unix seconds.
        deleted_at: in Unix seconds; None if the app is in use.
    """

    app_id: str
    name: str
    mode: Mode
    publishable_key: str
    secret_keys: int
    origins: list[str]
    created_at: int
    deleted_at: int | None


def check_origins(origins: Iterable[str]) -> list[str]:
    """Check the origins of an app's pages. Returns them without duplicates and without a slash at
    the end, in the form in which browsers send them.

    Raises:
        WattfareError: ``invalid_request``; it is not an origin as a browser sends it, or it does
            not use TLS.
    """
    checked = list(dict.fromkeys(map(_without_slash, origins)))
    for origin in checked:
        fault = fault_in(origin)
        if fault is None:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https"):
                fault = "is not the origin of a web page: it must begin with https://"
            elif parts.scheme == "http" and parts.hostname not in LOCAL_HOSTS:
                fault = "is not encrypted: use https://, or http://localhost on your own machine"
            elif (parts.hostname or "").endswith("."):
                fault = "must not end with a dot"
        if fault is not None:
            raise invalid_request(f"The origin {origin[:200]!r} {fault}.")
    return checked


def _without_slash(origin: str) -> str:
    """Remove the slash at the end, because people copy an origin from the address bar."""
    scheme, separator, rest = origin.partition("://")
    return f"{scheme}{separator}{rest.removesuffix('/')}" if separator else origin


def summaries(sql: Sql, *, deleted: bool = False) -> list[AppSummary]:
    """All apps, the oldest first.

    Args:
        deleted: True to include deleted apps.
    """
    origins: dict[str, list[str]] = {}
    for app_id, origin in sql.execute(select(_origins).order_by(_origins.c.origin)):
        origins.setdefault(app_id, []).append(origin)
    rows = sql.execute(select(_apps).order_by(_apps.c.created_at, _apps.c.id))
    return [
        AppSummary(
            app_id=row.id,
            name=row.name,
            mode=row.mode,
            publishable_key=row.publishable_key,
            secret_keys=1 if row.other_secret_hash is None else 2,
            origins=origins.get(row.id, []),
            created_at=row.created_at,
            deleted_at=row.deleted_at,
        )
        for row in rows
        if deleted or row.deleted_at is None
    ]


def find_app(sql: Sql, app_id: str) -> App | None:
    """The app with this id. None if it does not exist or is deleted."""
    row = sql.execute(select(_apps).where(_apps.c.id == app_id, _apps.c.deleted_at.is_(None)))
    found = row.mappings().first()
    return None if found is None else App(*(found[name] for name in App.__struct_fields__))


def rotate_key(sql: Sql, app_id: str) -> keys.NewKey:
    """Create a second secret key for an app. The first key stays valid until it is revoked.

    Raises:
        WattfareError: ``invalid_request``; there is no such app, or two keys are valid already.
    """
    app = _locked(sql, app_id)
    if app.other_secret_hash is not None:
        raise invalid_request(
            f"{app_id} already has two valid secret keys. Revoke one of them first: wattfare apps"
            f" revoke-key {app_id}."
        )
    key = keys.new_secret_key(app_id, app.mode)
    _change(sql, app_id, secret_hash=keys.digest(key), other_secret_hash=app.secret_hash)
    return keys.NewKey(app_id, key)


def revoke_key(sql: Sql, app_id: str, *, newest: bool = False) -> None:
    """Revoke the older of an app's two secret keys.

    Args:
        newest: True to revoke the newer key instead.

    Raises:
        WattfareError: ``invalid_request``; there is no such app, or only one key is valid.
    """
    app = _locked(sql, app_id)
    if app.other_secret_hash is None:
        raise invalid_request(
            f"{app_id} has only one valid secret key. Create another one first: wattfare apps"
            f" rotate-key {app_id}. To delete the app: wattfare apps delete {app_id}."
        )
    kept = app.other_secret_hash if newest else app.secret_hash
    _change(sql, app_id, secret_hash=kept, other_secret_hash=None)


def add_origins(sql: Sql, app_id: str, origins: Iterable[str]) -> None:
    """Register origins of an app's pages.

    Raises:
        WattfareError: ``invalid_request``; there is no such app, or one of them is not an origin.
    """
    checked = check_origins(origins)
    _locked(sql, app_id)
    there = set(sql.execute(select(_origins.c.origin).where(_origins.c.app_id == app_id)).scalars())
    for origin in checked:
        if origin not in there:
            sql.execute(insert(_origins).values(app_id=app_id, origin=origin))


def remove_origin(sql: Sql, app_id: str, origin: str) -> None:
    """Remove an origin of an app's pages.

    Raises:
        WattfareError: ``invalid_request``; there is no such app, or it has no such origin.
    """
    _locked(sql, app_id)
    which = (_origins.c.app_id == app_id, _origins.c.origin == _without_slash(origin))
    if sql.execute(delete(_origins).where(*which)).rowcount == 0:
        raise invalid_request(f"The app {app_id} has no origin {origin[:200]!r}.")


def delete_app(sql: Sql, app_id: str, now: datetime) -> int:
    """Delete an app. Its keys stop working, and its connections and grants are revoked. Its rows
    stay in the ledger. Returns the number of revoked connections.

    Raises:
        WattfareError: ``invalid_request``; there is no such app, or it is deleted already.
    """
    at, table, open_ = seconds(now), schema.connections, schema.approvals
    # Lock approvals before the app, as in :func:`.accounts.lock_app`. A new approval cannot connect
    # anything, because its redemption finds that the app is deleted.
    ours = (open_.c.app_id == app_id, open_.c.expires_at > at)
    accounts.lock_rows(sql, open_, *ours)
    _locked(sql, app_id)
    sql.execute(update(open_).where(*ours).values(expires_at=at))
    connected = select(func.count()).where(table.c.app_id == app_id, table.c.connected)
    users = sql.execute(connected).scalar_one()
    accounts.revoke_app(sql, app_id, now)
    _change(sql, app_id, deleted_at=at, other_secret_hash=None)
    return users


def _locked(sql: Sql, app_id: str) -> Row[tuple[object, ...]]:
    """Lock and return the row of an app, so that another command cannot change it at the same
    time."""
    wanted = select(_apps).where(_apps.c.id == app_id)
    row = sql.execute(wanted.with_for_update(key_share=True)).first()
    if row is None:
        raise _no_such_app(app_id)
    if row.deleted_at is not None:
        raise invalid_request(f"The app {app_id[:64]} is deleted.")
    return row


def _no_such_app(app_id: str) -> WattfareError:
    hint = (
        " That is a key, but this command needs the app's id."
        if app_id.startswith(("sk_", "pk_"))
        else ""
    )
    shown = "" if hint else f" {app_id[:64]!r}"
    return invalid_request(f"There is no such app{shown}. `wattfare apps list` shows them.{hint}")


def _change(sql: Sql, app_id: str, **values: object) -> None:
    sql.execute(update(_apps).where(_apps.c.id == app_id).values(**values))
