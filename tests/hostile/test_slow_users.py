"""A `resolve_user` that is slow for some users does not delay other users."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from support.drivers import INFERENCE, STATUS, TOKEN, asgi_app, body_of
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.http_client import fetch
from support.patience import PATIENCE
from support.servers import hypercorn_server, uvicorn_server
from support.victim import victim_at

from wattfare_mw import Request, WattfareMiddleware


@pytest.mark.parametrize("slow", [12, 39])
def test_slow_users_do_not_delay_fast_users(
    fake: FakeWattfare, slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not delay the DNS lookup of the service either, for which asyncio has few threads."""
    monkeypatch.setattr(fake, "url", fake.url.replace("127.0.0.1", "localhost"))
    gate, begun = threading.Event(), threading.Semaphore(0)

    def who(request: Request) -> str:
        if request.headers.get("x-slow"):
            begun.release()
            assert gate.wait(PATIENCE)
        return "user_1"

    app: Any = WattfareMiddleware(
        asgi_app, resolve_user=who, secret_key=SECRET_KEY, base_url=fake.url
    )
    with uvicorn_server(app) as (host, port), ExitStack() as stack:
        site = f"http://{host}:{port}"
        url = site + STATUS
        stack.enter_context(victim_at(site + INFERENCE, {}))
        pool = stack.enter_context(ThreadPoolExecutor(slow))

        def ask(**headers: str) -> int:
            return fetch(url, headers=headers).status_code

        try:
            asked = [pool.submit(ask, **{"x-slow": "1"}) for _ in range(slow)]
            for _ in asked:
                assert begun.acquire(timeout=PATIENCE)
            assert ask() == 200
            assert not any(each.done() for each in asked)
        finally:
            gate.set()
        assert {each.result() for each in asked} == {200}


@pytest.mark.parametrize("server", [uvicorn_server, hypercorn_server])
@pytest.mark.parametrize("path", [INFERENCE, TOKEN])
def test_client_that_leaves_ends_its_slow_resolve_user(
    fake: FakeWattfare, server: Any, path: str
) -> None:
    begun, cancelled = threading.Semaphore(0), threading.Semaphore(0)

    async def resolve_user(request: Request) -> str:
        begun.release()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.release()
        return "user_1"

    app: Any = WattfareMiddleware(
        asgi_app, resolve_user=resolve_user, secret_key=SECRET_KEY, base_url=fake.url
    )
    body = body_of()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    with server(app) as address:
        clients = [socket.create_connection(address[:2], timeout=PATIENCE) for _ in range(20)]
        for client in clients:
            client.sendall(request)
        for _ in clients:
            assert begun.acquire(timeout=PATIENCE)
        for client in clients:
            client.close()
        for _ in clients:
            assert cancelled.acquire(timeout=PATIENCE)
    assert not fake.exchanges
