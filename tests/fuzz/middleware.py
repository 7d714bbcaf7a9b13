"""Whole requests to the middleware, with a service in memory."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from random import Random
from typing import Any, Literal

from support.drivers import asgi_app, environ_of, scope_of, wsgi_app

from fuzz import mutations
from fuzz.samples import ANSWERS, CHUNKS, REQUESTS
from fuzz.targets import pieces
from wattfare_mw import AsyncWattfare, Wattfare, WattfareMiddleware, sse
from wattfare_mw.errors import WattfareNetworkError
from wattfare_mw.headers import Headers
from wattfare_mw.service.chat.allowed_fields import REQUEST
from wattfare_mw.transport import HTTPRequest

SECRET = "sk_test_abcdefabcdef_0123456789abcdef0123456789"
PATHS = (
    "/api/wattfare-token",
    "/api/wattfare/chat/completions",
    "/api/wattfare/chat/completions",
    "/api/wattfare/chat/completions",
    "/api/wattfare/status",
    "/api/wattfare/models",
    "/other",
)
_NAMES = (*REQUEST, "Model", "MODELS", "role", "content", "data", "id", "error", "code", "message")
_STATUS = {"connected": True, "limits": {"monthlyUsd": 5}, "usage": {"monthlyUsd": 0.5}}
_OTHERS: list[Any] = [
    {**_STATUS, "remainingUsd": 4.5},
    {"token": "t", "expiresAt": 1},
    {"data": [{"id": "openai/gpt-4o"}, {"id": "other/model"}]},
    {"error": {"code": "budget_exceeded", "message": "x"}},
    {"error": {"code": "auth", "message": "x"}},
]
_HEADERS = {
    "content-type": [b"application/json", b"application/json; charset=utf-8", b"text/plain"],
    "origin": [b"https://app.example", b"https://other.example", b"null"],
    "sec-fetch-site": [b"same-origin", b"cross-site", b"none"],
    "x-wattfare-grant": [b"grant"],
    "idempotency-key": [b"key"],
    "x-request-id": [b"abc"],
    "access-control-request-method": [b"POST"],
    "access-control-request-headers": [b"content-type, x-other"],
    "content-length": [b"5", b"999999999999"],
    "cookie": [b"session=u1"],
    "accept": [b"text/event-stream"],
}


class _Answer:
    """An answer of the service in memory."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], parts: list[bytes]):
        self.status = status
        self.headers = Headers.of_response(headers)
        self._parts = parts

    def read(self, limit: int = 0) -> bytes:
        return b"".join(self._parts)

    def read_some(self) -> bytes:
        return self._parts.pop(0) if self._parts else b""

    def close(self) -> None:
        self._parts.clear()


class _AsyncAnswer(_Answer):
    """The same for an event loop."""

    async def read(self, limit: int = 0) -> bytes:  # type: ignore[override]
        return super().read(limit)

    async def read_some(self) -> bytes:  # type: ignore[override]
        return super().read_some()

    async def close(self) -> None:  # type: ignore[override]
        super().close()


class _Service:
    """A transport without a network."""

    answer: type[_Answer] = _Answer

    random = Random(0)

    def send(self, request: HTTPRequest) -> _Answer:
        random = self.random
        if random.random() < 0.02:
            raise WattfareNetworkError("The connection broke.", sent=random.random() < 0.5)
        status = random.choice((200, 200, 200, 200, 204, 302, 400, 401, 402, 404, 429, 500, 503))
        kind = b"application/json"
        if request.url.endswith("/chat/completions") and random.random() < 0.6:
            kind = sse.CONTENT_TYPE.encode()
            chunks = [
                sse.write(mutations.json_of(CHUNKS, _NAMES, random))
                for _ in range(random.randint(0, 5))
            ]
            body = mutations.bytes_of([b"".join(chunks) + b"data: [DONE]\n\n"], random)
        else:
            body = mutations.json_of([*_OTHERS, *ANSWERS], _NAMES, random)
        headers = [(b"content-type", mutations.bytes_of([kind], random, (b";", b" ", b"x")))]
        if random.random() < 0.5:
            headers = [(b"content-type", kind)]
        if random.random() < 0.1:
            value = random.choice((b"1", b"nan", b"-5", b"1e400", b"soon", b""))
            headers.append((b"retry-after", value))
        if random.random() < 0.05:
            headers.append((b"content-encoding", random.choice((b"gzip", b"identity"))))
        return self.answer(status, headers, pieces(body, random))

    def close(self) -> None:
        pass


class _AsyncService(_Service):
    """The same for an event loop."""

    answer = _AsyncAnswer

    async def send(self, request: HTTPRequest) -> _Answer:  # type: ignore[override]
        return super().send(request)

    async def close(self) -> None:  # type: ignore[override]
        super().close()


class _Failures(logging.Handler):
    """Keeps the exceptions that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.failures: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.failures.append(record.exc_info[1])


def _user(request: Any) -> str | None:
    return "u1" if request.headers.get("cookie") else None


async def _user_async(request: Any) -> str | None:
    return _user(request)


class Middleware:
    """The target for one interface. Middlewares have different options."""

    interface: Literal["asgi", "wsgi"]
    _service: _Service
    _client: type[Wattfare | AsyncWattfare]
    _app: Any
    _resolve_user: Any

    def __init__(self) -> None:
        self._failures = _Failures()
        logger = logging.getLogger("wattfare_mw")
        logger.addHandler(self._failures)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        self._middlewares = [
            self._middleware(),
            self._middleware(
                models=["openai/*", "wattfare/echo"],
                allow_grants=True,
                allowed_origins=["https://app.example"],
                max_calls_per_user=5,
                max_body_bytes=2000,
                request_limit=5,
                on_usage=lambda *_: None,
            ),
        ]

    def _middleware(self, **options: Any) -> Any:
        client: Any = self._client(SECRET, base_url="http://service.invalid", max_retries=0)
        client._runner.transport = self._service
        return WattfareMiddleware(
            self._app,
            resolve_user=self._resolve_user,
            client=client,
            interface=self.interface,
            **options,
        )

    def __call__(self, random: Random) -> None:
        """Checks that a request gets an answer without our secret, and no 500 of our own."""
        self._service.random = random
        path = random.choice(PATHS)
        body = mutations.json_of(REQUESTS, _NAMES, random)
        headers = {"content-type": "application/json", "cookie": "u"}
        for name in random.sample(sorted(_HEADERS), random.choice((0, 0, 1, 2, 4))):
            value = mutations.bytes_of(_HEADERS[name], random, (b" ", b",", b";", b"\xff", b"x"))
            headers[name] = value.replace(b"\n", b"").replace(b"\r", b"").decode("latin-1")
        if random.random() < 0.9:
            headers["content-length"] = str(len(body))
        method = random.choice(("POST", "POST", "POST", "GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
        query = mutations.bytes_of([b"", b"a=b"], random).decode("latin-1")
        middleware = random.choice(self._middlewares)
        status, fields, told, left = self._ask(
            middleware, (method, path, headers, body, query), random
        )
        if self._failures.failures:
            raise self._failures.failures.pop()
        calls = middleware._gate._calls_at_once
        assert calls is None or not calls._counts
        if status == 0:
            assert left  # before the answer began
            return
        assert 200 <= status <= 599, status
        for name, value in fields:
            assert (name + value).isprintable(), (name, value)
            (name + value).encode("latin-1")
        assert SECRET.encode() not in told
        assert SECRET not in repr(fields)
        if status >= 400 and method != "HEAD" and path != "/other" and not left:
            assert json.loads(told)["error"]["message"]

    def _ask(self, middleware: Any, request: _Asked, random: Random) -> _Told:
        raise NotImplementedError


_Asked = tuple[str, str, dict[str, str], bytes, str]
"""The method, the path, the headers, the body and the query."""
_Told = tuple[int, list[tuple[str, str]], bytes, bool]
"""The status, the headers and the body of an answer, and True if the client left before its end."""


class WSGI(Middleware):
    """Over WSGI."""

    interface = "wsgi"
    _service = _Service()
    _client = Wattfare
    _app = staticmethod(wsgi_app)
    _resolve_user = staticmethod(_user)

    def _ask(self, middleware: Any, request: _Asked, random: Random) -> _Told:
        method, path, headers, body, query = request
        environ = environ_of(method, path, headers, body, query)
        environ["wsgi.input"] = io.BytesIO(body)
        started: list[tuple[str, list[tuple[str, str]]]] = []
        answer = middleware(
            environ, lambda status, fields, _error=None: started.append((status, fields))
        )
        parts: list[bytes] = []
        left = False
        try:
            for part in answer:
                parts.append(part)
                if random.random() < 0.02:
                    left = True
                    break
        finally:
            if hasattr(answer, "close"):
                answer.close()
        [(status, fields)] = started
        return int(status[:3]), fields, b"".join(parts), left


class ASGI(Middleware):
    """Over ASGI."""

    interface = "asgi"
    _service = _AsyncService()
    _client = AsyncWattfare
    _app = staticmethod(asgi_app)
    _resolve_user = staticmethod(_user_async)

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()

    def _ask(self, middleware: Any, request: _Asked, random: Random) -> _Told:
        return self._loop.run_until_complete(_ask_asgi(middleware, request, random))


async def _ask_asgi(middleware: Any, request: _Asked, random: Random) -> _Told:
    method, path, headers, body, query = request
    scope = scope_of(method, path, headers, query)
    parts = pieces(body, random) or [b""]
    messages: list[Any] = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, 1)
    ]
    left = random.random() < 0.02
    if left:  # within the body, or while it waits for its answer
        messages[random.randrange(len(messages)) :] = [{"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        nonlocal left
        # A server raises an OSError, or discards what is sent.
        if path in middleware.paths and random.random() < 0.01:
            left = True
            if random.random() < 0.5:
                raise OSError("The client has gone.")
        sent.append(message)

    await middleware(scope, receive, send)
    if not sent:
        return 0, [], b"", left
    start, *bodies = sent
    assert start["type"] == "http.response.start", start
    assert {message["type"] for message in bodies} <= {"http.response.body"}
    assert left or (bodies and not bodies[-1].get("more_body")), bodies
    assert all(message.get("more_body") for message in bodies[:-1])
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
    return start["status"], fields, b"".join(one.get("body", b"") for one in bodies), left
