"""Every kind of HTTP client behind one interface, so that one test covers them all.

A kind is a library (httpx, httpx2, aiohttp), sync or async, and who owns the client: passed by the
app, made by a factory of the app, or our own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import aiohttp
import httpx
import httpx2

from support.http_client import ssl_context
from wattfare_mw import AsyncWattfare, Chunk, Request, Response, Wattfare
from wattfare_mw.headers import Headers
from wattfare_mw.transport import direct

#: Must not appear in any error, log or traceback. No source file contains it as a whole.
NEEDLE = bytes(range(0x61, 0x71)).decode()
SECRET = f"sk_test_app1_{NEEDLE * 8}"  # longer than the length at which rich truncates strings


@dataclass(frozen=True)
class Kind:
    """One kind of HTTP client."""

    library: str
    is_async: bool
    whose: str  # passed, factory, own
    direct: bool = True  # through the direct path, if there is one

    @property
    def id(self) -> str:
        way = "" if self.direct else "-by-session"
        return f"{'async' if self.is_async else 'sync'}-{self.library}-{self.whose}{way}"

    def make(self, **options: Any) -> Any:
        """Makes a client of this library, as an app would."""
        if self.library != "aiohttp":
            options.setdefault("verify", ssl_context())
        match self.library, self.is_async:
            case "httpx", False:
                return httpx.Client(**options)
            case "httpx", True:
                return httpx.AsyncClient(**options)
            case "httpx2", False:
                return httpx2.Client(**options)
            case "httpx2", True:
                return httpx2.AsyncClient(**options)
            case _:
                return aiohttp.ClientSession(**options)


BY_SESSION = Kind("aiohttp", True, "own", direct=False)

#: For tests of what a client of the app may change. The others use ``ONE_OF_EACH``.
KINDS = [
    Kind("httpx", False, "injected"),
    Kind("httpx", False, "factory"),
    Kind("httpx", False, "own"),
    Kind("httpx2", False, "injected"),
    Kind("httpx2", False, "factory"),
    Kind("httpx2", False, "own"),
    Kind("httpx", True, "injected"),
    Kind("httpx", True, "factory"),
    Kind("httpx", True, "own"),
    Kind("httpx2", True, "injected"),
    Kind("httpx2", True, "factory"),
    Kind("httpx2", True, "own"),
    Kind("aiohttp", True, "injected"),
    Kind("aiohttp", True, "factory"),
    Kind("aiohttp", True, "own"),
    BY_SESSION,
]


#: For tests that do not depend on who owns the client.
ONE_OF_EACH = [
    Kind("httpx", False, "own"),
    Kind("httpx2", False, "injected"),
    Kind("httpx", True, "own"),
    Kind("httpx2", True, "factory"),
    Kind("httpx2", True, "own"),
    Kind("aiohttp", True, "own"),
    Kind("aiohttp", True, "injected"),
    BY_SESSION,
]


class Driver:
    """A client of this kind, driven synchronously even if it is async.

    Args:
        kind: the kind of the HTTP client.
        url: the service's URL.
        http: options for the HTTP client, if it is not our own.
        options: for :class:`Wattfare` or :class:`AsyncWattfare`.
    """

    def __init__(self, kind: Kind, url: str, http: dict[str, Any] | None = None, **options: Any):
        self.kind = kind
        self.runner = asyncio.Runner() if kind.is_async else None
        self.http_client: Any = None
        self._made: list[Any] = []
        options.setdefault("secret_key", SECRET)
        options.setdefault("max_retries", 0)
        cls = AsyncWattfare if kind.is_async else Wattfare
        http = http or {}
        if kind.whose == "injected":
            self.http_client = self.run(self._make, http)
            options["http_client"] = self.http_client
        elif kind.whose == "factory":
            options["http_client"] = lambda: kind.make(**http)
        elif kind.library == "httpx2":
            options["http_client"] = httpx2.AsyncClient if kind.is_async else httpx2.Client
        with ExitStack() as circumstances:
            if kind.library == "httpx":
                circumstances.enter_context(without_aiohttp())
            if not kind.direct:
                circumstances.enter_context(patch.object(direct, "fits", lambda _version: False))
            self.client: Any = cls(base_url=url, **options)

    def _make(self, http: dict[str, Any]) -> Any:
        if not self.kind.is_async:
            return self.kind.make(**http)

        async def make() -> Any:
            return self.kind.make(**http)

        return make()

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls the function, and runs an awaitable result on our event loop."""
        if self.runner is None:
            return function(*args, **kwargs)

        async def call() -> Any:
            result = function(*args, **kwargs)
            return await result if isinstance(result, Awaitable) else result

        return self.runner.run(call())

    def status(self, user: str = "u1") -> Any:
        return self.run(lambda: self.client.user(user).status())

    def create_session(self, user: str = "u1", request_limit: Any = None) -> Any:
        return self.run(self.client.create_session, user, request_limit)

    def generate(self, prompt: str | None = "Hi", **params: Any) -> Any:
        model = self.client.user("u1").model("test/model")
        return self.run(lambda: model.generate(prompt, **params))

    def stream(self, prompt: str | None = "Hi", **params: Any) -> DrivenStream:
        model = self.client.user("u1").model("test/model")
        return DrivenStream(self, self.run(lambda: model.stream(prompt, **params)))

    def handle(self, request: Request, resolve_user: Any, *args: Any, **options: Any) -> Response:
        handler = self.client.session_handler(resolve_user, *args, **options)
        return self.run(handler, request)

    def close(self) -> None:
        """Closes the client and nothing else."""
        self.run(self.client.aclose if self.kind.is_async else self.client.close)

    def end(self) -> None:
        """Closes everything that this driver has created."""
        self.close()
        if self.http_client is not None:
            if self.kind.library == "aiohttp":
                self.run(self.http_client.close)
            else:
                self.run(self.http_client.aclose if self.kind.is_async else self.http_client.close)
        if self.runner is not None:
            self.runner.close()


#: A function that makes a client with these options, and its driver.
Drive = Callable[..., Driver]


class DrivenStream:
    """A stream, driven synchronously."""

    def __init__(self, driver: Driver, stream: Any) -> None:
        self.driver = driver
        self.stream = stream

    def __enter__(self) -> DrivenStream:
        if self.driver.kind.is_async:
            self.driver.run(self.stream.__aenter__)
        else:
            self.stream.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.driver.kind.is_async:
            self.driver.run(self.stream.__aexit__, *error)
        else:
            self.stream.__exit__(*error)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if not self.driver.kind.is_async:
            return next(self.stream)
        try:
            return self.driver.run(self.stream.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def texts(self) -> list[str]:
        """Returns everything that ``text_stream`` yields."""
        if not self.driver.kind.is_async:
            return list(self.stream.text_stream)

        async def collect() -> list[str]:
            return [text async for text in self.stream.text_stream]

        return self.driver.run(collect)


def without_aiohttp() -> AbstractContextManager[Any]:
    """Hides aiohttp, as if it were not installed."""
    find = importlib.util.find_spec
    return patch(
        "importlib.util.find_spec",
        lambda name, *args: None if name == "aiohttp" else find(name, *args),
    )


@contextmanager
def driving(kind: Kind, url: str, http: dict[str, Any] | None = None, **options: Any) -> Any:
    """A driver that is closed at the end of the block."""
    driver = Driver(kind, url, http, **options)
    try:
        yield driver
    finally:
        driver.end()


def post(path: str = "/api/wattfare-token", **headers: str) -> Request:
    """A POST as a browser sends it from the app's own page."""
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Request("POST", path, Headers(fields))


def is_held_by_its_traceback(error: BaseException) -> bool:
    """True if a frame of the package in an error's traceback has the error in a local variable.
    Only the garbage collector would free them."""
    return any(
        error is value
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].startswith("wattfare_mw")
        for value in frame.f_locals.values()
    )
