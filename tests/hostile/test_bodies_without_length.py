"""A body without ``Content-Length``, over HTTP/2 or in chunks, is still read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.drivers import JSON
from support.http_client import http_client
from support.servers import hypercorn_server
from support.service import App, Service, bearer

from wattfare_mw.service import Settings, create_app, create_keys

CAP = json.dumps({"monthlyUsd": 2}).encode()


def in_pieces(body: bytes) -> Iterator[bytes]:
    yield body[:3]
    yield body[3:]


def reading_whole_bodies(app: Any) -> Any:
    """Wraps the app, so that it reads the whole body before it answers.

    hypercorn 0.18 drops an HTTP/2 connection if a part of a body arrives after the answer.
    """

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        more = scope["type"] == "http"

        async def receive_part() -> Any:
            nonlocal more
            message = await receive()
            more = message.get("more_body", False)
            return message

        async def send_after_it(message: Any) -> None:
            while more:
                await receive_part()
            await send(message)

        await app(scope, receive_part, send_after_it)

    return wrapped


@pytest.fixture(params=["HTTP/1.1, in chunks", "HTTP/2"])
def app(
    request: pytest.FixtureRequest, service: Service, tmp_path: Path, monkeypatch: Any
) -> Iterator[App]:
    """A test app whose client never sends ``Content-Length``."""
    if request.param == "HTTP/2":
        database = f"sqlite:///{tmp_path / 'wattfare.db'}"
        keys = create_keys(database, "app")
        asgi = reading_whole_bodies(create_app(Settings(database=database)))
        with hypercorn_server(asgi) as (host, port):
            # The test uses only its URL.
            http2 = Service(f"http://{host}:{port}", database, process=None)  # type: ignore[arg-type]
            with App(http2, keys) as app:
                app.http.close()
                app.http = http_client(base_url=http2.api, http1=False, http2=True)
                yield app
        return
    with service.app() as app:
        yield app


def post(app: App, path: str, credential: str, body: bytes, **headers: str) -> httpx.Response:
    """Sends a request without the length of its body."""
    built = app.http.build_request(
        "POST", path, content=in_pieces(body), headers={**bearer(credential), **headers}
    )
    assert "content-length" not in built.headers
    return app.http.send(built)


def test_approval_reads_the_cap_from_a_body_without_length(app: App) -> None:
    answer = post(app, "/connections", app.token(), CAP, **JSON)
    assert answer.status_code == 200, answer.text
    assert answer.json()["limits"] == {"monthlyUsd": 2}
    assert app.status()["limits"] == {"monthlyUsd": 2}


@pytest.mark.parametrize("headers", [{}, JSON, {"content-type": "text/plain"}])
def test_empty_body_uses_the_limit_of_the_token(app: App, headers: dict[str, str]) -> None:
    answer = post(app, "/connections", app.token(monthlyUsd=3), b"", **headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["limits"] == {"monthlyUsd": 3}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_body_of_another_type_is_refused(app: App, kind: str) -> None:
    headers = {"content-type": kind}
    assert post(app, "/connections", app.token(), CAP, **headers).status_code == 415
    sized = app.http.post("/connections", content=CAP, headers={**bearer(app.token()), **headers})
    assert sized.status_code == 415
    assert app.status()["connected"] is False


def test_invalid_approval_body_is_refused(app: App) -> None:
    for body in (b"null", b"[]", b"{", b" ", b'{"monthlyUsd": "2"}'):
        assert post(app, "/connections", app.token(), body, **JSON).status_code == 400
    too_large = b'{"x": "%s"}' % (b"x" * 70_000)
    assert post(app, "/connections", app.token(), too_large, **JSON).status_code == 413
    assert app.status()["connected"] is False


def test_other_routes_read_a_body_without_length(app: App) -> None:
    body = b'{"appUserId": "u1", "requestLimit": {"monthlyUsd": 2}}'
    session = post(app, "/sessions", app.keys.secret_key, body, **JSON)
    assert session.status_code == 200, session.text
    token = session.json()["token"]
    approved = post(app, "/connections", token, b'{"monthlyUsd": 50}', **JSON)
    assert approved.json()["limits"] == {"monthlyUsd": 2}
    grant = post(app, "/grants", app.keys.publishable_key, b'{"requests": 7}', **JSON)
    assert grant.json()["requests"] == 7
    for path, key in (("/sessions", app.keys.secret_key), ("/grants", app.keys.publishable_key)):
        assert post(app, path, key, b"", **JSON).status_code == 400
    call = b'{"model": "wattfare/echo", "messages": [{"role": "user", "content": "hi"}]}'
    payer = {**JSON, "x-wattfare-user": "u1"}
    answer = post(app, "/chat/completions", app.keys.secret_key, call, **payer)
    assert answer.json()["choices"][0]["message"]["content"] == "hi"
    assert post(app, "/chat/completions", app.keys.secret_key, b"", **payer).status_code == 400
