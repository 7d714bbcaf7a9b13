"""A call leaves no reference cycles. The garbage collector would have to find them, which pauses
the server."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from typing import Any

import pytest
from support.service import bearer, chat_body
from support.sqlite import sqlite_database

from wattfare_mw.service import Settings, create_app, create_keys


class Cycle:
    """A request as in a real server: the server owns the scope and the ``send`` function."""

    def __init__(self, scope: dict[str, Any], body: bytes) -> None:
        self.scope = scope
        self.body = body
        self.status = 0
        self.received = False

    async def receive(self) -> dict[str, Any]:
        if self.received:
            await asyncio.Event().wait()  # the client stays connected
        self.received = True
        return {"type": "http.request", "body": self.body}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


async def serve(app: Any, headers: dict[str, str], body: dict[str, Any]) -> weakref.ref[Any]:
    fields = {**headers, "content-type": "application/json"}
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/chat/completions",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in fields.items()],
    }
    cycle = Cycle(scope, json.dumps(body).encode())
    await asyncio.create_task(app(scope, cycle.receive, cycle.send))
    assert cycle.status == 200
    return weakref.ref(cycle)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["wattfare/echo", "wattfare/echo-slow"])
async def test_call_leaves_no_reference_cycles(tmp_path, stream, model) -> None:
    database = sqlite_database(tmp_path)
    keys = create_keys(database, "app")
    app = create_app(Settings(database=database))
    async with app.router.lifespan_context(app):
        await app.state.service.store.connect(keys.app_id, "u1", None)
        headers = {**bearer(keys.secret_key), "x-wattfare-user": "u1"}
        body = chat_body("one two three four", model=model, stream=stream)
        gc.disable()
        try:
            served = await serve(app, headers, body)
            await asyncio.sleep(0)  # let cancelled tasks finish
            assert served() is None
        finally:
            gc.enable()
