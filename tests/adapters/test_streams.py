"""Streams pass through an app's other middleware event by event."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flask
import pytest
from fastapi import FastAPI
from litestar import Litestar
from litestar.config.compression import CompressionConfig
from starlette.applications import Starlette
from starlette.middleware import gzip
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from support.fake_wattfare import DONE, FakeWattfare, held_stream, word
from support.http_client import http_client
from support.rules import INFERENCE, JSON, ask
from support.servers import uvicorn_server, werkzeug_server
from wattfare_fastapi import add_wattfare as add_to_fastapi
from wattfare_flask import WattfareMiddleware
from wattfare_litestar import WattfarePlugin
from wattfare_starlette import add_wattfare


def user(_request: Any) -> str:
    return "u1"


async def passed_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


def with_middleware(kind: Any, add: Any) -> Callable[[dict[str, Any]], Any]:
    def build(options: dict[str, Any]) -> AbstractContextManager[Any]:
        app = kind()
        # Older versions of Starlette compress event streams, too, and delay them.
        if hasattr(gzip, "DEFAULT_EXCLUDED_CONTENT_TYPES"):
            app.add_middleware(gzip.GZipMiddleware, minimum_size=1)
        add(app, resolve_user=user, **options)
        app.add_middleware(BaseHTTPMiddleware, dispatch=passed_on)
        return uvicorn_server(app)

    return build


def litestar(options: dict[str, Any]) -> AbstractContextManager[Any]:
    return uvicorn_server(
        Litestar(
            [],
            compression_config=CompressionConfig(backend="gzip", minimum_size=1),
            plugins=[WattfarePlugin(resolve_user=user, **options)],
            logging_config=None,
        )
    )


def in_flask(options: dict[str, Any]) -> AbstractContextManager[Any]:
    app = flask.Flask("app")
    WattfareMiddleware(app, resolve_user=user, **options)
    app.after_request(lambda response: response)
    return werkzeug_server(app)


SERVERS: dict[str, Callable[[dict[str, Any]], AbstractContextManager[Any]]] = {
    "fastapi": with_middleware(FastAPI, add_to_fastapi),
    "starlette": with_middleware(Starlette, add_wattfare),
    "litestar": litestar,
    "flask": in_flask,
}


@pytest.mark.parametrize("name", SERVERS)
def test_first_event_arrives_before_the_second_is_created(
    name: str, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    fake.script = held_stream
    with (
        SERVERS[name](at_fake) as (host, port),
        http_client() as client,
    ):
        url = f"http://{host}:{port}{INFERENCE}"

        def events() -> Any:
            body = ask(stream=True).encode()
            with client.stream("POST", url, content=body, headers=JSON) as answer:
                yield answer.headers["content-type"]
                yield from answer.iter_bytes()

        reading = events()
        # The status arrives with the first event at the latest.
        threading.Thread(target=lambda: fake.next().chunk(word("one"))).start()
        assert next(reading).startswith("text/event-stream")
        assert next(reading) == word("one")
        (exchange,) = fake.exchanges
        exchange.chunk(word("two") + DONE)
        exchange.end()
        assert b"".join(reading) == word("two") + DONE
