"""The test app of ``wattfare dev``. Its keys are the same at each start."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ..errors import invalid_request
from ..service.keys import AppKeys, app_id_of, opens
from ..service.ledger import accounts
from ..service.ledger.apps import find_app
from ..service.ledger.clock import utc_now
from ..service.ledger.databases import (
    backend_of,
    change_database,
    create_keys,
    read_database,
    sqlite_file,
)
from ..service.ledger.usage import is_connected

#: The suffix of the key file's name, after the name of the database.
FILE_SUFFIX = ".dev-key"
NAME = "dev"
_MAX_FILE_BYTES = 10_000


def file_of(database: str) -> Path:
    """The path of this SQLite database's file.

    Raises:
        WattfareError: ``invalid_request``; the database is not an SQLite file.
    """
    file = sqlite_file(database) if backend_of(database) == "sqlite" else None
    if file is None:
        raise invalid_request(
            "`wattfare dev` needs an SQLite file, such as --database sqlite:///wattfare.db. To use"
            " PostgreSQL, type: wattfare serve"
        )
    return file


def file_of_keys(database: str) -> Path:
    """The path of the key file. The database has only hashes of the keys, so the keys are in this
    file. Only its owner can read it."""
    file = file_of(database)
    return file.with_name(file.name + FILE_SUFFIX)


def find(database: str) -> AppKeys | None:
    """Find the keys of the test app. None if the key file is missing or out of date.

    Raises:
        WattfareError: ``invalid_request``; the database cannot be opened.
    """
    if not file_of(database).exists():
        return None
    kept = _read(file_of_keys(database))
    return kept if kept is not None and _is_valid(database, kept) else None


def create(database: str) -> AppKeys:
    """Create a test app. Returns its keys.

    Raises:
        WattfareError: ``invalid_request``; the database cannot be opened.
        OSError: the key file cannot be written.
    """
    keys = create_keys(database, NAME, "test")
    _write(file_of_keys(database), keys)
    return keys


def connect(database: str, app_id: str, users: Iterable[str], cap: int) -> None:
    """Connect users with this monthly cap, in nano-dollars. Users who are already connected keep
    their caps."""
    for user in users:
        if not read_database(database, lambda sql, user=user: is_connected(sql, app_id, user)):
            change_database(
                database,
                lambda sql, user=user: accounts.connect(sql, app_id, user, cap, None, utc_now()),
            )


def _is_valid(database: str, keys: AppKeys) -> bool:
    app_id = app_id_of(keys.secret_key)
    if app_id is None:
        return False
    app = read_database(database, lambda sql: find_app(sql, app_id))
    return app is not None and app.mode == "test" and opens(keys.secret_key, app)


def _read(path: Path) -> AppKeys | None:
    try:
        with path.open("rb") as file:
            if os.name == "posix":
                os.chmod(path, 0o600)  # a copied file may have another mode
            return msgspec.json.decode(file.read(_MAX_FILE_BYTES), type=AppKeys)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _write(path: Path, keys: AppKeys) -> None:
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(keys) + b"\n")
        os.replace(name, path)
    except OSError:
        os.unlink(name)  # the file has a secret
        raise
