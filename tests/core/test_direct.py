"""The direct path through aiohttp: which versions use it, and what it never writes. The tests of
every transport cover the rest."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
import yarl

from wattfare_mw.transport import HTTPRequest, async_transport, direct

#: True if the installed aiohttp uses the direct path.
needs_direct = pytest.mark.skipif(
    not direct.fits(aiohttp.__version__), reason="the session is used with this aiohttp"
)


def test_direct_path_is_used_with_known_versions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "FITTING", ((3, 12), (3, 15)))
    assert all(direct.fits(version) for version in ("3.12.0", "3.14.5", "3.13.0rc1"))
    strangers = ("3.11.18", "3.15.0", "4.0.0", "4.0.0a1", "2.3.10", "", "unknown")
    assert not any(direct.fits(version) for version in strangers)


async def test_session_is_used_with_any_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    asked: list[str] = []
    request = aiohttp.ClientSession.request

    def watched(session: aiohttp.ClientSession, method: str, *args: Any, **options: Any) -> Any:
        asked.append(method)
        return request(session, method, *args, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "request", watched)
    monkeypatch.setattr(direct, "FITTING", ((0, 0), (0, 0)))
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    transport = async_transport()
    answer = await transport.send(HTTPRequest("POST", url, {}, b"{}", 5, 5))
    assert await answer.read() == b"ok"
    assert asked == ["POST"]
    await transport.close()
    server.close()


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\rb", "\n"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_header_cannot_start_a_new_line(where: str, value: str) -> None:
    headers = {value: "x"} if where == "name" else {"x": value}
    request = HTTPRequest("POST", "http://127.0.0.1:9/x", headers, b"{}")
    with pytest.raises(ValueError, match="line end"):
        direct._head(request, yarl.URL(request.url), 2)


def test_request_is_written_exactly() -> None:
    request = HTTPRequest("POST", "http://h.test:81/a%20b?c=d", {"x": "y"}, b"{}")
    url = yarl.URL(request.url, encoded=True)
    assert direct._head(request, url, 2) == (
        b"POST /a%20b?c=d HTTP/1.1\r\nhost: h.test:81\r\ncontent-length: 2\r\nx: y\r\n\r\n"
    )


@needs_direct
async def test_session_closes_the_connections() -> None:
    seen: list[bytes] = []
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            seen.append(await reader.readuntil(b"{}"))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await reader.read()
        gone.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    transport = async_transport()
    for _ in range(2):  # on one connection
        answer = await transport.send(HTTPRequest("POST", url, {}, b"{}", 5, 5))
        assert await answer.read() == b"ok"
    await transport.close()
    await asyncio.wait_for(gone.wait(), 30)
    assert len(seen) == 2
    server.close()


@needs_direct
@pytest.mark.parametrize("size", [2, 2**14, 2**14 + 1, 2**20])
async def test_body_of_any_size_arrives_whole(size: int) -> None:
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert f"content-length: {size}\r\n".encode() in head
            came.append(await reader.readexactly(size))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    transport = async_transport()
    body = bytes(i % 251 for i in range(size))
    for _ in range(2):  # on one connection
        answer = await transport.send(HTTPRequest("POST", url, {}, body, 5, 5))
        assert await answer.read() == b"ok"
    assert came == [body, body]
    await transport.close()
    server.close()


class Socket:
    """A connection, its protocol and its transport, as far as the end of an answer uses them."""

    def __init__(self, unwritten: int) -> None:
        self.unwritten = unwritten
        self.transport = self
        self.done: list[str] = []

    def get_write_buffer_size(self) -> int:
        return self.unwritten

    def close(self) -> None:
        self.done.append("closed")

    def release(self) -> None:
        self.done.append("released")


@pytest.mark.parametrize(("unwritten", "done"), [(0, "released"), (1, "closed")])
def test_connection_with_an_unfinished_request_is_not_reused(unwritten: int, done: str) -> None:
    stub = Socket(unwritten)
    direct.Sent(stub, stub)._ended()
    assert stub.done == [done]
