"""The Starlette adapter, under Starlette and under FastAPI."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated, Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse as FastAPIJSONResponse
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket
from support.fake_wattfare import DONE, FakeWattfare, held, held_stream, word
from support.rules import (
    INFERENCE,
    JSON,
    MODELS,
    PREFLIGHT,
    REFUSED,
    REFUSING,
    STATUS,
    TOKEN,
    Refused,
    ask,
    check_preflight,
    check_refused,
    cost,
)
from support.service import App
from wattfare_starlette import (
    WattfareMiddleware,
    add_wattfare,
    get_user,
    get_user_sync,
    session_endpoint,
    wattfare_error_handler,
)

from wattfare_mw import (
    AsyncUser,
    AsyncWattfare,
    User,
    Wattfare,
    WattfareBudgetExceededError,
    WattfareError,
)


def by_header(request: HTTPConnection) -> str | None:
    return None if "x-signed-out" in request.headers else request.headers.get("x-user", "u1")


async def me(request: Request) -> PlainTextResponse:
    return PlainTextResponse((await get_user(request)).id)


def me_sync(request: Request) -> PlainTextResponse:
    return PlainTextResponse(get_user_sync(request).id)


ME = [Route("/me", me), Route("/me-sync", me_sync)]


@pytest.fixture(params=[Starlette, FastAPI], ids=["starlette", "fastapi"])
def kind(request: pytest.FixtureRequest) -> type[Starlette]:
    return request.param


@pytest.fixture(params=["sync", "async"])
def resolving(request: pytest.FixtureRequest) -> Callable[[Callable[[Any], Any]], Any]:
    """Wraps a function as a sync or an async resolve_user."""

    def make(function: Callable[[Any], Any]) -> Any:
        if request.param == "sync":
            return function

        async def resolve(request: HTTPConnection) -> Any:
            return function(request)

        return resolve

    return make


# -- who pays


def test_user_of_the_session_pays(
    kind: Any, resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def login(request: Request) -> PlainTextResponse:
        request.session["user"] = "from the session"
        return PlainTextResponse("ok")

    def resolve(request: Request) -> str | None:
        assert isinstance(request, Request)
        assert request.app is app
        request.session["asked"] = request.session.get("asked", 0) + 1
        return request.session.get("user")

    app = kind(routes=[Route("/login", login), *ME])
    add_wattfare(app, resolve_user=resolving(resolve), **at_fake)
    app.add_middleware(SessionMiddleware, secret_key="not secret")
    with TestClient(app) as client:
        assert client.post(TOKEN).status_code == 401
        client.get("/login")
        assert client.post(TOKEN).json() == {"token": "a.b.c", "expiresAt": 1_800_000_000}
        assert fake.next("/sessions").json["appUserId"] == "from the session"
        assert client.post(INFERENCE, content=ask(), headers=JSON).status_code == 200
        assert fake.next().user == "from the session"
        assert client.get(STATUS).status_code == client.get(MODELS).status_code == 200
        assert client.get("/me").text == client.get("/me-sync").text == "from the session"


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> Any:
        name = conn.headers.get("x-user")
        return None if name is None else (AuthCredentials(["member"]), SimpleUser(name))


def test_user_of_the_authentication_pays(
    resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def resolve(request: Request) -> str | None:
        return request.user.display_name if request.user.is_authenticated else None

    app = Starlette(
        routes=ME,
        middleware=[
            Middleware(AuthenticationMiddleware, backend=Backend()),
            Middleware(WattfareMiddleware, resolve_user=resolving(resolve), **at_fake),
        ],
        exception_handlers={WattfareError: wattfare_error_handler},
    )
    with TestClient(app) as client:
        assert client.post(TOKEN).status_code == 401
        assert client.get("/me").json()["error"]["code"] == "auth"
        assert client.post(TOKEN, headers={"x-user": "zoe"}).status_code == 200
        assert client.get("/me", headers={"x-user": "bob"}).text == "bob"
    assert fake.next("/sessions").json["appUserId"] == "zoe"


def test_cap_depends_on_the_request(
    resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def limit(request: Request) -> int:
        return {"pro": 50}.get(request.query_params["plan"], 5)

    app = Starlette()
    add_wattfare(app, resolve_user=by_header, request_limit=resolving(limit), **at_fake)
    with TestClient(app) as client:
        for plan, usd in (("pro", 50), ("free", 5)):
            assert client.post(f"{TOKEN}?plan={plan}").status_code == 200
            assert fake.next("/sessions").json["requestLimit"] == {"monthlyUsd": usd}


def test_sync_view_uses_the_apps_own_event_loop(at_fake: dict[str, Any]) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def resolve(_request: Request) -> str:
        loops.append(asyncio.get_running_loop())
        return "u1"

    app = Starlette(routes=ME)
    add_wattfare(app, resolve_user=resolve, **at_fake)
    with TestClient(app) as client:
        assert client.get("/me").text == client.get("/me-sync").text == "u1"
    assert loops[0] is loops[1]


def test_websocket_has_the_user(resolving: Any, at_service: dict[str, Any], account: App) -> None:
    account.connect("u1")

    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        user = await get_user(websocket)
        async with user.model("wattfare/echo").stream(await websocket.receive_text()) as stream:
            async for text in stream.text_stream:
                await websocket.send_text(text)
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/chat", chat)])
    add_wattfare(app, resolve_user=resolving(by_header), **at_service)
    with TestClient(app) as client, client.websocket_connect("/chat") as socket:
        socket.send_text("a b")
        assert [socket.receive_text(), socket.receive_text()] == ["a ", "b"]


def test_get_user_without_the_middleware_raises() -> None:
    with TestClient(Starlette(routes=ME)) as client:
        for path in ("/me", "/me-sync"):
            with pytest.raises(RuntimeError, match="has no WattfareMiddleware"):
                client.get(path)


# -- the place of the middleware


def test_middleware_around_the_app(kind: Any, at_fake: dict[str, Any]) -> None:
    app = kind(routes=ME)
    wrapped = WattfareMiddleware(app, resolve_user=by_header, **at_fake)
    with TestClient(wrapped) as client:
        assert client.post(TOKEN).status_code == 200
        assert client.get("/me").text == "u1"
        assert client.get("/else").status_code == 404


def test_mounts_and_sub_apps(at_fake: dict[str, Any], fake: FakeWattfare) -> None:
    inner = Starlette(routes=ME)
    inner.add_exception_handler(WattfareError, wattfare_error_handler)
    outer = Starlette(routes=[Mount("/in", app=inner), Mount("/group", routes=ME)])
    add_wattfare(outer, resolve_user=by_header, **at_fake)
    with TestClient(outer) as client:
        for path in ("/in/me", "/in/me-sync", "/group/me"):
            assert client.get(path).text == "u1"
            anonymous = client.get(path, headers={"x-signed-out": "1"})
            assert (anonymous.status_code, anonymous.json()["error"]["code"]) == (401, "auth")
        assert client.post(f"/in{TOKEN}").status_code == 404
        assert client.post(TOKEN).status_code == 200


async def test_sub_app_with_its_own_middleware(at_fake: dict[str, Any]) -> None:
    client = AsyncWattfare(**at_fake)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    inner = FastAPI(routes=ME)
    add_wattfare(inner, resolve_user=by_header, client=client)
    outer = Starlette(routes=[Mount("/in", app=inner)], lifespan=lifespan)
    with TestClient(outer, root_path="") as browser:
        assert browser.post(f"/in{TOKEN}").status_code == 200
        assert browser.get(f"/in{STATUS}").status_code == 200
        assert browser.post(TOKEN).status_code == 404
        assert browser.get("/in/me").text == "u1"


@pytest.mark.parametrize("root", ["/api/v9", "/x"])
def test_root_path_is_stripped(root: str, kind: Any, at_fake: dict[str, Any]) -> None:
    app = kind(routes=ME)
    add_wattfare(app, resolve_user=by_header, **at_fake)
    with TestClient(app, root_path=root) as client:  # behind a proxy that strips it
        assert client.post(TOKEN).status_code == 200
        assert client.post(root + TOKEN).status_code == 200  # behind a proxy that does not


def test_base_http_middleware_outside(at_fake: dict[str, Any], fake: FakeWattfare) -> None:
    async def mark(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers["x-marked"] = "1"
        return response

    app = Starlette(routes=ME)
    add_wattfare(app, resolve_user=by_header, **at_fake)
    app.add_middleware(BaseHTTPMiddleware, dispatch=mark)
    fake.script = lambda exchange: (
        exchange.stream(word("one "), word("two"), DONE)
        if exchange.path == "/chat/completions"
        else exchange.answer({"token": "a.b.c", "expiresAt": 1})
    )
    with TestClient(app) as client:
        assert client.post(TOKEN).headers["x-marked"] == "1"
        answer = client.post(INFERENCE, content=ask(stream=True), headers=JSON)
        assert answer.headers["x-marked"] == "1"
        assert answer.content == word("one ") + word("two") + DONE


def with_class(app: Starlette, **options: Any) -> None:
    app.add_middleware(WattfareMiddleware, **options)


@pytest.mark.parametrize(
    ("add", "other_is_first", "runs"),
    [
        (add_wattfare, True, True),
        (add_wattfare, False, True),
        (with_class, True, False),
        (with_class, False, True),
    ],
)
def test_order_decides_only_for_the_class(
    add: Any, other_is_first: bool, runs: bool, at_fake: dict[str, Any]
) -> None:
    """Whether another middleware runs on Wattfare's paths: always after ``add_wattfare``."""
    ran: list[str] = []

    async def other(request: Request, call_next: Any) -> Response:
        ran.append(request.url.path)
        return await call_next(request)

    app = Starlette()
    if other_is_first:
        app.add_middleware(BaseHTTPMiddleware, dispatch=other)
    add(app, resolve_user=by_header, **at_fake)
    if not other_is_first:
        app.add_middleware(BaseHTTPMiddleware, dispatch=other)
    with TestClient(app) as client:
        client.post(TOKEN)
    assert ran == [TOKEN] * runs


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_client_disconnect_ends_the_call(
    stream: bool, outside: bool, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    async def pass_on(request: Request, call_next: Any) -> Response:
        return await call_next(request)

    app = Starlette()
    add_wattfare(app, resolve_user=by_header, **at_fake)
    if outside:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    fake.script = held_stream if stream else held
    gone = asyncio.Event()
    started = asyncio.Event()
    messages = [{"type": "http.request", "body": ask(stream=stream).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            started.set()

    scope = _scope("POST", INFERENCE, JSON)
    request = asyncio.create_task(app(scope, receive, send))
    exchange = await anyio.to_thread.run_sync(fake.next)
    if stream:
        exchange.chunk(word("one"))
        async with asyncio.timeout(20):
            await started.wait()
    gone.set()
    await anyio.to_thread.run_sync(exchange.wait_gone)
    async with asyncio.timeout(20):
        await asyncio.gather(request, return_exceptions=outside)


def _scope(method: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }


async def test_connections_close_with_the_app(
    at_fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    for client, method in ((AsyncWattfare, "aclose"), (Wattfare, "close")):
        close = getattr(client, method)

        def kept(self: Any, close: Any = close, name: str = client.__name__) -> Any:
            closed.append(name)
            return close(self)

        monkeypatch.setattr(client, method, kept)

    def view(request: Request) -> JSONResponse:
        return JSONResponse({"connected": get_user_sync(request).status().connected})

    app = Starlette(routes=[Route("/view", view)])
    add_wattfare(app, resolve_user=by_header, **at_fake)
    with TestClient(app) as client:
        assert client.get(STATUS).status_code == 200
        assert client.get("/view").json() == {"connected": True}
        assert not closed
    assert sorted(closed) == ["AsyncWattfare", "Wattfare"]


# -- answers


@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: f"{r.method} {r.path} {r.status}")
def test_refusals_are_the_same_as_in_other_adapters(
    refused: Refused, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = FastAPI()
    add_wattfare(app, resolve_user=by_header, **REFUSING, **at_fake)
    with TestClient(app) as client:
        answer = client.request(
            refused.method, refused.path, headers=refused.headers, content=refused.body
        )
    check_refused(refused, answer.status_code, answer.headers, answer.content)
    assert not fake.exchanges


def test_head_and_preflight_and_trailing_slash(at_fake: dict[str, Any]) -> None:
    app = FastAPI()
    add_wattfare(app, resolve_user=by_header, **REFUSING, **at_fake)
    with TestClient(app) as client:
        whole, head = client.get(STATUS), client.head(STATUS)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]
        preflight = client.options(INFERENCE, headers=PREFLIGHT)
        check_preflight(preflight.status_code, preflight.headers)
        assert client.post(f"{TOKEN}/").status_code == 404


# -- Starlette's own answers


@pytest.mark.parametrize("where", ["added", "around"])
def test_starlette_handles_its_own_exceptions_of_resolve_user(
    where: str,
    kind: Any,
    resolving: Any,
    at_fake: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)

    def resolve(request: Request) -> str:
        if "to" in request.query_params:
            raise HTTPException(307, headers={"location": "/login"})
        if "own" in request.query_params:
            raise HTTPException(418)
        raise HTTPException(403, "members only")

    app: Any = kind(
        routes=ME, exception_handlers={418: lambda *_args: PlainTextResponse("my own", 418)}
    )
    served = app
    if where == "added":
        add_wattfare(app, resolve_user=resolving(resolve), **at_fake)
    else:
        served = WattfareMiddleware(app, resolve_user=resolving(resolve), **at_fake)
    with TestClient(served, follow_redirects=False) as client:
        for method, path in (
            *(("POST", TOKEN), ("GET", STATUS), ("POST", INFERENCE), ("GET", MODELS)),
            *(("GET", "/me"), ("GET", "/me-sync")),
        ):
            answer = client.request(method, path, content=ask(), headers=JSON)
            assert answer.status_code == 403
            assert "members only" in answer.text
        moved = client.post(f"{TOKEN}?to=1")
        assert (moved.status_code, moved.headers["location"]) == (307, "/login")
        own = client.post(f"{TOKEN}?own=1")
        assert (own.status_code, own.text) == (418, "my own")
    assert not caplog.records


def test_other_errors_of_resolve_user_appear_in_the_log_only(
    resolving: Any, at_fake: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def resolve(_request: Request) -> str:
        raise ZeroDivisionError("the inside")

    app = Starlette(debug=True)
    add_wattfare(app, resolve_user=resolving(resolve), **at_fake)
    with TestClient(app) as client:
        answer = client.post(TOKEN)
    assert answer.status_code == 500
    assert "the inside" not in answer.text
    assert "the inside" in caplog.text


def test_missing_option_raises(at_fake: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="resolve_user"):
        WattfareMiddleware(Starlette(), **at_fake)


# -- views


def test_views_can_spend(
    resolving: Any,
    at_service: dict[str, Any],
    account: App,
    spent: Callable[[str], Decimal],
) -> None:
    account.connect("u1", monthlyUsd=1)

    def view(request: Request) -> PlainTextResponse:
        return PlainTextResponse(get_user_sync(request).model("wattfare/echo").generate("a b").text)

    async def async_view(request: Request) -> PlainTextResponse:
        user = await get_user(request)
        return PlainTextResponse((await user.model("wattfare/echo").generate("a b")).text)

    async def streamed(request: Request) -> StreamingResponse:
        stream = (await get_user(request)).model("wattfare/echo").stream("a b")

        async def texts() -> AsyncIterator[str]:
            async with stream:
                async for text in stream.text_stream:
                    yield text

        return StreamingResponse(texts())

    async def direct(request: Request) -> StreamingResponse:
        stream = (await get_user(request)).model("wattfare/echo").stream("a b")
        return StreamingResponse(stream.text_stream)

    def in_thread(request: Request) -> StreamingResponse:
        stream = get_user_sync(request).model("wattfare/echo").stream("a b")
        return StreamingResponse(stream.text_stream)

    views = [view, async_view, streamed, direct, in_thread]
    app = Starlette(routes=[Route(f"/{v.__name__}", v) for v in views])
    add_wattfare(app, resolve_user=resolving(by_header), **at_service)
    with TestClient(app) as client:
        for n, one in enumerate(views, 1):
            answer = client.get(f"/{one.__name__}")
            assert (answer.status_code, answer.text) == (200, "a b")
            assert spent("u1") == Decimal(str(cost(2 * n)))


def test_user_as_a_fastapi_dependency(
    resolving: Any,
    at_service: dict[str, Any],
    account: App,
    spent: Callable[[str], Decimal],
) -> None:
    router = APIRouter(prefix="/ai")

    @router.get("/async")
    async def async_view(user: Annotated[AsyncUser, Depends(get_user)]) -> str:
        return (await user.model("wattfare/echo").generate("a b")).text

    @router.get("/sync")
    def view(user: Annotated[User, Depends(get_user_sync)]) -> str:
        return user.model("wattfare/echo").generate("a b").text

    app = FastAPI()
    app.include_router(router)
    add_wattfare(app, resolve_user=resolving(by_header), **at_service)
    with TestClient(app) as client:
        for path in ("/ai/async", "/ai/sync"):
            anonymous = client.get(path, headers={"x-signed-out": "1"})
            assert (anonymous.status_code, anonymous.json()["error"]["code"]) == (401, "auth")
            first = client.get(path)
            assert (first.status_code, first.json()["error"]["code"]) == (402, "not_connected")
        account.connect("u1", monthlyUsd=0.000013)
        assert client.get("/ai/async").json() == client.get("/ai/sync").json() == "a b"
        last = client.get("/ai/sync")
        assert (last.status_code, last.json()["error"]["code"]) == (402, "budget_exceeded")
        assert last.headers["cache-control"] == "no-store"
        paths = client.get("/openapi.json").json()["paths"]
        # The dependency adds no parameter to the app's API.
        assert "parameters" not in paths["/ai/async"]["get"]
    assert spent("u1") == Decimal(str(cost(4)))


def test_refused_key_in_a_view_appears_in_the_log_only(
    at_fake: dict[str, Any], fake: FakeWattfare, caplog: pytest.LogCaptureFixture
) -> None:
    async def view(request: Request) -> JSONResponse:
        return JSONResponse((await (await get_user(request)).status()).connected)

    app = Starlette(routes=[Route("/view", view)])
    add_wattfare(app, resolve_user=by_header, **at_fake)
    fake.script = lambda exchange: exchange.error("auth", 401)
    with TestClient(app) as client:
        assert client.get("/view").status_code == 401
    assert [r.levelno for r in caplog.records if "secret key" in r.message] == [logging.ERROR]


def test_error_handler_of_the_app_is_kept(kind: Any, at_fake: dict[str, Any]) -> None:
    async def view(_request: Request) -> None:
        raise WattfareBudgetExceededError

    async def handle(_request: Request, error: Exception) -> Response:
        return FastAPIJSONResponse({"ours": str(error)}, 418)

    app = kind(routes=[Route("/view", view)], exception_handlers={WattfareError: handle})
    add_wattfare(app, resolve_user=by_header, **at_fake)
    with TestClient(app) as client:
        assert client.get("/view").status_code == 418


# -- the token route alone


@pytest.mark.parametrize("where", ["app", "mount", "router"])
def test_token_route_alone(
    where: str, resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def resolve(request: Request) -> str | None:
        if "stop" in request.query_params:
            raise HTTPException(403, "members only")
        return by_header(request)

    client = AsyncWattfare(**at_fake)
    endpoint = session_endpoint(client, resolving(resolve), resolving(lambda _request: 7))

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        async with client:
            yield

    route = Route("/token", endpoint, methods=["POST"])
    if where == "app":
        app: Any = Starlette(routes=[route], lifespan=lifespan)
    elif where == "mount":
        app = Starlette(routes=[Mount("/sub", routes=[route])], lifespan=lifespan)
    else:
        app = FastAPI(lifespan=lifespan)
        router = APIRouter(prefix="/sub")
        router.add_api_route("/token", endpoint, methods=["POST"], response_model=None)
        app.include_router(router)
    path = "/token" if where == "app" else "/sub/token"
    with TestClient(app) as browser:
        assert browser.post(path).json() == {"token": "a.b.c", "expiresAt": 1_800_000_000}
        assert fake.next("/sessions").json == {
            "appUserId": "u1",
            "requestLimit": {"monthlyUsd": 7},
        }
        anonymous = browser.post(path, headers={"x-signed-out": "1"})
        assert (anonymous.status_code, anonymous.json()["error"]["code"]) == (401, "auth")
        other = browser.post(path, headers={"sec-fetch-site": "cross-site"})
        assert (other.status_code, other.json()["error"]["code"]) == (403, "invalid_request")
        stopped = browser.post(f"{path}?stop=1")
        assert stopped.status_code == 403
        assert "members only" in stopped.text
        fake.script = lambda exchange: exchange.error("invalid_request", 409)
        assert json.loads(browser.post(path).content)["error"]["message"] == "No."
