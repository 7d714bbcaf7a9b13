"""Large bodies of one payer do not delay those of others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.drivers import INFERENCE, asgi_app
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.http_client import fetch, http_client
from support.patience import PATIENCE
from support.servers import uvicorn_server
from support.service import Service, chat_body

from wattfare_mw import WattfareMiddleware
from wattfare_mw.middleware import request_body
from wattfare_mw.service.api import chat_completions
from wattfare_mw.service.asgi import create_app
from wattfare_mw.service.settings import Settings
from wattfare_mw.turns import in_turn

#: Above the limit of a small body.
LARGE = "word " * 20_000


class Slow:
    """Mallory's large bodies, which last until the end of the test."""

    def __init__(self, read: Callable[..., Any], place: int) -> None:
        self.read, self.place = read, place
        self.begun, self.over = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **more: Any) -> Any:
        if b"mallory" in args[self.place]:
            self.begun.set()
            assert self.over.wait(PATIENCE)
        return self.read(*args, **more)


@pytest.fixture
def at_once() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def check(url: str, headers: Callable[[str], dict[str, str]], slow: Slow, pool: Any) -> None:
    with http_client() as http:

        def post(user: str) -> int:
            body = chat_body(f"{user} {LARGE}", max_tokens=5)
            return http.post(url, json=body, headers=headers(user)).status_code

        try:
            attack = [pool.submit(post, "mallory") for _ in range(4)]
            assert slow.begun.wait(PATIENCE)
            assert pool.submit(post, "alice").result(PATIENCE) == 200
            assert not any(each.done() for each in attack)
        finally:
            slow.over.set()
        assert [each.result(PATIENCE) for each in attack] == [200] * 4


def test_service_takes_large_bodies_of_payers_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: ThreadPoolExecutor
) -> None:
    slow = Slow(chat_completions._read, 1)
    monkeypatch.setattr(chat_completions, "_read", slow)
    settings = Settings(database=f"sqlite:///{tmp_path / 'ledger.db'}")
    with uvicorn_server(create_app(settings)) as (host, port):
        service = Service(f"http://{host}:{port}", settings.database, process=None)  # type: ignore[arg-type]
        assert fetch(f"{service.url}/healthz").status_code == 200
        with service.app() as app:
            for user in ("mallory", "alice"):
                app.connect(user, monthlyUsd=100)
            check(f"{service.api}/chat/completions", app.paid_by, slow, at_once)


def test_middleware_takes_large_bodies_of_payers_in_turn(
    fake: FakeWattfare, monkeypatch: pytest.MonkeyPatch, at_once: ThreadPoolExecutor
) -> None:
    slow = Slow(request_body.read, 0)
    monkeypatch.setattr(request_body, "read", slow)
    app = WattfareMiddleware(
        asgi_app,
        resolve_user=lambda request: request.headers.get("x-me"),
        secret_key=SECRET_KEY,
        base_url=fake.url,
    )
    with uvicorn_server(app) as (host, port):
        check(f"http://{host}:{port}{INFERENCE}", lambda user: {"x-me": user}, slow, at_once)


async def test_cancelled_turn_is_freed() -> None:
    over = threading.Event()
    first = asyncio.create_task(in_turn("mallory", over.wait, PATIENCE))
    second = asyncio.create_task(in_turn("mallory", lambda: 2))
    await asyncio.sleep(0)
    second.cancel()
    third = asyncio.create_task(in_turn("mallory", lambda: 3))
    assert await in_turn("alice", lambda: 1) == 1
    over.set()
    assert await first
    assert await third == 3
