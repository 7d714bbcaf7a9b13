"""Stop ends the streams of a budget within a second, in every process. Nothing is sent after it.

``WATTFARE_TEST_STREAMS`` sets the number of open streams: 500 with ``make test-long``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.pace import Pace
from support.service import App, Service, bearer, chat_body, run_service

from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.verify import verify

STREAMS = int(os.environ.get("WATTFARE_TEST_STREAMS", "40"))
#: This many streams belong to one user, in all processes together.
OF_A_USER = 20
WORD = b'"content":"word'
#: Seconds within which 99 of 100 streams must end after Stop.
MOST_SECONDS = 1.0


@pytest.fixture
def four(tmp_path: Path, database: str) -> Iterator[list[Service]]:
    """Four processes on one database."""
    with ExitStack() as stack:
        yield [stack.enter_context(run_service(tmp_path, database=database)) for _ in range(4)]


class Stream:
    """A stream, as its client reads it."""

    def __init__(self, service: Service, app: App, user: str) -> None:
        self.user = user
        self.begun = asyncio.Event()
        self.text = b""
        self.ended_at = 0.0
        self._service = service
        self._app = app

    async def read(self) -> None:
        at = urlsplit(self._service.url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        # Minutes of words if it is not stopped.
        body = json.dumps(
            chat_body("word " * 3_000, model="wattfare/echo-slow", stream=True, max_tokens=3_000)
        ).encode()
        fields = {**self._app.paid_by(self.user), "content-type": "application/json"}
        fields |= {"host": at.netloc, "content-length": str(len(body)), "connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"POST /api/v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body)
        clock = asyncio.get_running_loop().time
        try:
            while block := await reader.read(65536):
                self.text += block
                self.ended_at = clock()
                if WORD in block:
                    self.begun.set()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    @property
    def last_event(self) -> dict:
        lines = [line for line in self.text.split(b"\n") if line.startswith(b"data: ")]
        return json.loads(lines[-1].removeprefix(b"data: "))


async def stop(service: Service, token: str) -> None:
    at = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    fields = {**bearer(token), "host": at.netloc, "connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"DELETE /api/v1/connections HTTP/1.1\r\n{head}\r\n".encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 204 ")
    writer.close()
    await writer.wait_closed()


async def test_stop_ends_streams_in_every_process(four: list[Service]) -> None:
    users = [f"u{number}" for number in range(-(-STREAMS // OF_A_USER))]
    with four[0].app() as app:
        for user in (*users, "other"):
            app.connect(user)
        tokens = {user: app.token(user) for user in users}
        streams = [Stream(four[n % 4], app, users[n // OF_A_USER]) for n in range(STREAMS)]
        others = [Stream(service, app, "other") for service in four]
        clock = asyncio.get_running_loop().time
        stopped_at: dict[str, float] = {}
        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(stream.read()) for stream in (*streams, *others)]
            for stream in (*streams, *others):
                await stream.begun.wait()
            with Pace() as pace:
                for number, user in enumerate(users):
                    stopped_at[user] = clock()
                    await stop(four[number % 4], tokens[user])
                await asyncio.wait(reading[: len(streams)])
                slowness, _ = await asyncio.to_thread(pace.since)
            # The streams of another user continue.
            for stream in others:
                stream.begun.clear()
                await stream.begun.wait()
                assert b'"error"' not in stream.text
            for task in reading[len(streams) :]:
                task.cancel()
        took = sorted(stream.ended_at - stopped_at[stream.user] for stream in streams)
        late = took[max(len(took) * 99 // 100 - 1, 0)]
        print(
            f"{len(took)} streams: median {took[len(took) // 2]:.3f} s, p99 {late:.3f} s, "
            f"most {took[-1]:.3f} s, on a machine that is {slowness:.1f} times slower than alone"
        )
        for stream in streams:  # this event is the last one
            assert stream.last_event["error"]["code"] == "not_connected", stream.text[-300:]
        assert late / slowness <= MOST_SECONDS
        for user in users:
            assert app.status(user)["connected"] is False
    for service in four:
        service.stop()
    assert await asyncio.to_thread(read_database, four[0].database, verify) == []
