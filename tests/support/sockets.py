"""Requests written byte by byte on a socket, as no HTTP client would send them."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.patience import PATIENCE
from support.servers import Visitor, uvicorn_server
from support.service import App, chat_body
from support.sqlite import sqlite_database
from wattfare_mw.service import Settings, create_app, sockets


def connect(address: Any) -> socket.socket:
    """A connection to a server."""
    return socket.create_connection(address, timeout=PATIENCE)


def address_of(url: str) -> tuple[str, int]:
    """The host and the port in this URL."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def send_call(app: App, headers: dict[str, str] | None = None, **fields: Any) -> Visitor:
    """Sends a call of the user `u1` from a client that can disconnect at any moment.

    Args:
        fields: the fields of the body, as in :func:`.chat_body`.
    """
    visitor = Visitor(address_of(app.service.url))
    headers = {**app.paid_by("u1"), "content-type": "application/json", **(headers or {})}
    body = json.dumps(chat_body(**{"model": "fake/model", **fields})).encode()
    visitor.ask("POST", "/api/v1/chat/completions", headers, body)
    return visitor


def rest(client: socket.socket) -> bytes:
    """Everything until the end of the connection."""
    data = b""
    with suppress(ConnectionError):
        while more := client.recv(65536):
            data += more
    client.close()
    return data


def head_of(path: str, headers: dict[str, str], length: int | None = None) -> bytes:
    """The head of a POST whose body has this length, or arrives in chunks if it is None."""
    fields = {"host": "x", "content-type": "application/json", **headers}
    if length is None:
        fields["transfer-encoding"] = "chunked"
    else:
        fields["content-length"] = str(length)
    lines = [f"{name}: {value}\r\n" for name, value in fields.items()]
    return f"POST {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


@contextmanager
def served(folder: Path, **options: Any) -> Generator[Any]:
    """The service in this process, so that a test can set its limits."""
    app = create_app(Settings(database=sqlite_database(folder)))
    with uvicorn_server(app, http=sockets.LimitedProtocol, **options) as address:
        yield address


def database_in(folder: Path) -> str:
    """The database of :func:`served`."""
    return f"sqlite:///{folder / 'ledger.db'}"
