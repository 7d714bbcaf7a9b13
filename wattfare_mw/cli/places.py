"""Error messages about the service's address and its database."""

from __future__ import annotations

import errno
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from ..service.ledger.databases import backend_of, sqlite_file
from .options import option

new_option = option(
    "--new",
    "make_new",
    is_flag=True,
    help="Create the SQLite file if it does not exist. Without this option, a missing file is an"
    " error, because your service's file may be in another directory.",
)


def new_file(database: str) -> Path | None:
    """The SQLite file of this URL, if the file does not exist. None for any other database."""
    if backend_of(database) != "sqlite":
        return None
    file = sqlite_file(database)
    return None if file is None or file.exists() else file.absolute()


def refuse_new_file(database: str, command: str) -> None:
    """Raise an error if the SQLite file does not exist.

    Args:
        command: the command after ``wattfare``, without options.

    Raises:
        click.ClickException: the SQLite file does not exist.
    """
    file = new_file(database)
    if file is None:
        return
    raise click.ClickException(
        f"The database {file} does not exist. Nothing was created. Type one of:\n"
        "  wattfare dev               to start a service here, with a test app\n"
        "  wattfare serve             to start a service here, without an app\n"
        f"  wattfare {command} --database sqlite:////path/to/{Path(file).name}\n"
        "                             if your service keeps its database in another directory\n"
        f"  wattfare {command} --new   to create a new database here"
    )


def where(database: str) -> str:
    """A text for messages that identifies the database, such as the absolute path of an SQLite
    file. It never contains a password."""
    file = sqlite_file(database) if backend_of(database) == "sqlite" else None
    return "the database" if file is None else str(file.absolute())


@contextmanager
def port_errors(command: str, host: str, port: int) -> Generator[None]:
    """If the service cannot listen at this address, raise an error that says what to type.

    Args:
        command: ``dev`` or ``serve``.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise click.ClickException(
                f"Port {port} is in use, perhaps by another `wattfare`. Type one of:\n"
                f"  wattfare {command} --port {port + 1 if port < 65535 else port - 1}\n"
                f"  wattfare {command} --port 0    to use a free port"
            ) from None
        if error.errno == errno.EACCES:
            raise click.ClickException(
                f"Only an administrator may use port {port}. Type: wattfare {command} --port 8787"
            ) from None
        if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
            raise click.ClickException(
                f"{host} is not an address of this machine. Type:"
                f" wattfare {command} --host 127.0.0.1"
            ) from None
        raise
