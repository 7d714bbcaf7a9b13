"""The Litestar adapter: the plugin's routes, its dependencies, its place in Litestar's layers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from litestar import (
    Controller,
    Litestar,
    MediaType,
    Request,
    Response,
    Router,
    get,
    post,
    websocket,
)
from litestar.config.cors import CORSConfig
from litestar.config.csrf import CSRFConfig
from litestar.connection import ASGIConnection, WebSocket
from litestar.di import NamedDependency
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import DefineMiddleware
from litestar.middleware.authentication import (
    AbstractAuthenticationMiddleware,
    AuthenticationResult,
)
from litestar.middleware.csrf import CSRFMiddleware
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.params import JSONBody
from litestar.response import Stream
from litestar.testing import TestClient
from support.fake_wattfare import DONE, FakeWattfare, word
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
from wattfare_litestar import (
    WattfareMiddleware,
    WattfarePlugin,
    session_route,
    wattfare_error_handler,
)

import wattfare_mw
from wattfare_mw import (
    AsyncUser,
    AsyncWattfare,
    Wattfare,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareNotConnectedError,
)

Connection = ASGIConnection[Any, Any, Any, Any]


def by_header(connection: Connection) -> str | None:
    return None if "x-signed-out" in connection.headers else connection.headers.get("x-user", "u1")


@get("/me", media_type=MediaType.TEXT)
async def me(wattfare_user: NamedDependency[AsyncUser]) -> str:
    return wattfare_user.id


@get("/me-sync", media_type=MediaType.TEXT, sync_to_thread=True)
def me_sync(wattfare_user_sync: NamedDependency[wattfare_mw.User]) -> str:
    return wattfare_user_sync.id


def app_with(options: dict[str, Any], *handlers: Any, **more: Any) -> Litestar:
    plugin = WattfarePlugin(**{"resolve_user": by_header, **options})
    return Litestar([me, me_sync, *handlers], plugins=[plugin], logging_config=None, **more)


@pytest.fixture(params=["sync", "async"])
def resolving(request: pytest.FixtureRequest) -> Callable[[Callable[[Any], Any]], Any]:
    """Wraps a function as a sync or an async resolve_user."""

    def make(function: Callable[[Any], Any]) -> Any:
        if request.param == "sync":
            return function

        async def resolve(connection: Connection) -> Any:
            return function(connection)

        return resolve

    return make


# -- who pays


def test_user_of_the_session_pays(
    resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    @get("/login")
    async def login(request: Request[Any, Any, Any]) -> str:
        request.set_session({"user": "from the session"})
        return "ok"

    @get("/asked")
    async def asked(request: Request[Any, Any, Any]) -> int:
        return request.session["asked"]

    def resolve(connection: Connection) -> str | None:
        assert isinstance(connection, ASGIConnection)
        assert connection.app is app
        session = connection.session
        connection.set_session({**session, "asked": session.get("asked", 0) + 1})
        return session.get("user")

    app = app_with(
        {"resolve_user": resolving(resolve), **at_fake},
        *(login, asked),
        middleware=[ServerSideSessionConfig().middleware],
    )
    with TestClient(app) as client:
        assert client.post(TOKEN).status_code == 401
        client.get("/login")
        assert client.post(TOKEN).json() == {"token": "a.b.c", "expiresAt": 1_800_000_000}
        assert fake.next("/sessions").json["appUserId"] == "from the session"
        assert client.post(INFERENCE, content=ask(), headers=JSON).status_code == 200
        assert fake.next().user == "from the session"
        assert client.get(STATUS).status_code == client.get(MODELS).status_code == 200
        assert client.get("/me").text == client.get("/me-sync").text == "from the session"
        # What resolve_user writes into the session is kept.
        assert client.get("/asked").json() == 6


class Authentication(AbstractAuthenticationMiddleware):
    async def authenticate_request(self, connection: Connection) -> AuthenticationResult:
        name = connection.headers.get("x-user")
        if name is None:
            raise NotAuthorizedException("sign in")
        return AuthenticationResult(user={"id": name}, auth="a token")


def test_user_of_the_authentication_pays(
    resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def resolve(connection: Connection) -> str | None:
        assert connection.auth == "a token"
        return connection.user["id"]

    app = app_with({"resolve_user": resolving(resolve), **at_fake}, middleware=[Authentication])
    with TestClient(app) as client:
        assert client.post(TOKEN).json()["detail"] == "sign in"  # the app's own answer
        assert not fake.exchanges
        assert client.post(TOKEN, headers={"x-user": "zoe"}).status_code == 200
        assert client.get("/me", headers={"x-user": "bob"}).text == "bob"
    assert fake.next("/sessions").json["appUserId"] == "zoe"


def test_guards_of_the_app_apply(at_fake: dict[str, Any], fake: FakeWattfare) -> None:
    def members(connection: Connection, _handler: BaseRouteHandler) -> None:
        if "x-member" not in connection.headers:
            raise PermissionDeniedException("members only")

    with TestClient(app_with(at_fake, guards=[members])) as client:
        assert client.post(TOKEN).status_code == 403
        assert not fake.exchanges
        assert client.post(TOKEN, headers={"x-member": "1"}).status_code == 200


def test_cap_depends_on_the_request(
    resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def limit(connection: Connection) -> int:
        return {"pro": 50}.get(connection.query_params["plan"], 5)

    with TestClient(app_with({"request_limit": resolving(limit), **at_fake})) as client:
        for plan, usd in (("pro", 50), ("free", 5)):
            assert client.post(f"{TOKEN}?plan={plan}").status_code == 200
            assert fake.next("/sessions").json["requestLimit"] == {"monthlyUsd": usd}


def test_sync_handler_uses_the_apps_own_event_loop(at_fake: dict[str, Any]) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def resolve(_connection: Connection) -> str:
        loops.append(asyncio.get_running_loop())
        return "u1"

    with TestClient(app_with({**at_fake, "resolve_user": resolve})) as client:
        assert client.get("/me").text == client.get("/me-sync").text == "u1"
    assert loops[0] is loops[1]


def test_websocket_has_the_user(at_service: dict[str, Any], account: App) -> None:
    account.connect("u1")

    @websocket("/chat")
    async def chat(
        socket: WebSocket[Any, Any, Any], wattfare_user: NamedDependency[AsyncUser]
    ) -> None:
        await socket.accept()
        model = wattfare_user.model("wattfare/echo")
        async with model.stream(await socket.receive_text()) as stream:
            async for text in stream.text_stream:
                await socket.send_text(text)
        await socket.close()

    with TestClient(app_with(at_service, chat)) as client, client.websocket_connect("/chat") as ws:
        ws.send_text("a b")
        assert [ws.receive_text(), ws.receive_text()] == ["a ", "b"]


# -- in the app


@dataclass
class User:
    """An app's own class, with a name that many apps use."""

    name: str


@post("/users")
async def create_user(data: JSONBody[User]) -> User:
    return data


def test_user_class_of_the_app_is_kept(at_fake: dict[str, Any]) -> None:
    with TestClient(app_with(at_fake, create_user)) as client:
        assert client.post("/users", json={"name": "x"}).json() == {"name": "x"}


def test_path_of_the_app_prefixes_the_routes(at_fake: dict[str, Any]) -> None:
    with TestClient(app_with(at_fake, path="/v1")) as client:
        assert client.post(f"/v1{TOKEN}").status_code == 200
        assert client.get(f"/v1{MODELS}").status_code == 200
        assert client.post(TOKEN).status_code == 404


def test_openapi_schema_is_generated(at_fake: dict[str, Any]) -> None:
    with TestClient(app_with(at_fake)) as client:
        schema = client.get("/schema/openapi.json").json()
    assert set(schema["paths"]) == {"/me", "/me-sync", TOKEN, STATUS, MODELS, INFERENCE}
    assert set(schema["paths"][STATUS]) == {"get", "delete"}
    for path, method in ((TOKEN, "post"), (STATUS, "get"), (MODELS, "get"), (INFERENCE, "post")):
        operation = schema["paths"][path][method]
        assert operation["tags"] == ["wattfare"]
        assert set(operation["responses"]) == {"200", "401", "402", "403", "429", "502"}
        error = operation["responses"]["402"]["content"]["application/json"]["schema"]
        assert "code" in error["properties"]["error"]["properties"]
    chat = schema["paths"][INFERENCE]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "messages" in str(chat["requestBody"])
    assert "parameters" not in schema["paths"]["/me"]["get"]


def test_wattfare_paths_need_no_csrf_token(at_fake: dict[str, Any]) -> None:
    @post("/form")
    async def form() -> str:
        return "ok"

    config = CSRFConfig("a secret of some length")
    own_key = CSRFConfig("a secret of some length", exclude_from_csrf_key="its own")
    for option in (
        {"csrf_config": config},
        {"csrf_config": own_key},
        {"middleware": [DefineMiddleware(CSRFMiddleware, config=config)]},
    ):
        with TestClient(app_with(at_fake, form, **option)) as client:
            assert client.post("/form").status_code == 403
            assert client.post(TOKEN).status_code == 200
            assert client.post(INFERENCE, content=ask(), headers=JSON).status_code == 200
            other = client.post(TOKEN, headers={"sec-fetch-site": "cross-site"})
            assert other.json()["error"]["code"] == "invalid_request"


def test_cors_of_the_app_applies(at_fake: dict[str, Any]) -> None:
    config = CORSConfig(allow_origins=["https://app.example"])
    with TestClient(app_with(at_fake, cors_config=config)) as client:
        assert client.post(TOKEN, headers={"origin": "https://evil.example"}).status_code == 403
        assert client.post(TOKEN).status_code == 200


def test_plugin_in_two_apps(at_fake: dict[str, Any]) -> None:
    plugin = WattfarePlugin(resolve_user=by_header, **at_fake)
    apps = [Litestar([me], plugins=[plugin], logging_config=None) for _ in range(2)]
    for app in apps:
        with TestClient(app) as client:
            assert client.get(STATUS).status_code == 200
            assert client.get("/me").text == "u1"


def test_missing_option_raises(at_fake: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="resolve_user"):
        WattfarePlugin(**at_fake)


def test_connections_close_with_the_app(
    at_fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    for client, method in ((AsyncWattfare, "aclose"), (Wattfare, "close")):
        close = getattr(client, method)

        def kept(self: Any, close: Any = close, name: str = client.__name__) -> Any:
            closed.append(name)
            return close(self)

        monkeypatch.setattr(client, method, kept)

    @get("/view", sync_to_thread=True)
    def view(wattfare_user_sync: NamedDependency[wattfare_mw.User]) -> bool:
        return wattfare_user_sync.status().connected

    with TestClient(app_with(at_fake, view)) as client:
        assert client.get(STATUS).status_code == 200
        assert client.get("/view").json() is True
        assert not closed
    assert sorted(closed) == ["AsyncWattfare", "Wattfare"]


def test_middleware_around_the_app(
    at_fake: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def resolve(connection: Connection) -> str | None:
        assert isinstance(connection, ASGIConnection)
        if "stop" in connection.query_params:
            raise PermissionDeniedException("members only")
        return by_header(connection)

    @get("/", media_type=MediaType.TEXT)
    async def index() -> str:
        return "home"

    wrapped: Any = WattfareMiddleware(
        Litestar([index], logging_config=None), resolve_user=resolve, **at_fake
    )
    with TestClient(wrapped) as client:
        assert client.post(TOKEN).status_code == 200
        assert client.get("/").text == "home"
        assert client.get("/else").status_code == 404
        # Litestar is inside and cannot answer.
        assert client.post(f"{TOKEN}?stop=1").status_code == 500
        assert "members only" in caplog.text


# -- answers


@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: f"{r.method} {r.path} {r.status}")
def test_refusals_are_the_same_as_in_other_adapters(
    refused: Refused, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    with TestClient(app_with({**REFUSING, **at_fake})) as client:
        answer = client.request(
            refused.method, refused.path, headers=refused.headers, content=refused.body
        )
    check_refused(refused, answer.status_code, answer.headers, answer.content)
    assert not fake.exchanges


def test_head_and_preflight_and_trailing_slash(at_fake: dict[str, Any]) -> None:
    with TestClient(app_with({**REFUSING, **at_fake})) as client:
        whole, head = client.get(STATUS), client.head(STATUS)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]
        preflight = client.options(INFERENCE, headers=PREFLIGHT)
        check_preflight(preflight.status_code, preflight.headers)
        # Litestar treats both paths the same.
        assert client.post(f"{TOKEN}/").status_code == 200


def test_stream_is_forwarded(at_fake: dict[str, Any], fake: FakeWattfare) -> None:
    fake.script = lambda exchange: exchange.stream(word("one "), word("two"), DONE)
    with TestClient(app_with(at_fake)) as client:
        answer = client.post(INFERENCE, content=ask(stream=True), headers=JSON)
        assert answer.content == word("one ") + word("two") + DONE
        assert answer.headers["content-type"] == "text/event-stream"


# -- Litestar's own answers


def test_litestar_handles_its_own_exceptions_of_resolve_user(
    resolving: Any, at_fake: dict[str, Any]
) -> None:
    def resolve(connection: Connection) -> str:
        if "own" in connection.query_params:
            raise NotAuthorizedException
        raise PermissionDeniedException("members only")

    def handle(_request: Any, _error: Exception) -> Response[str]:
        return Response("my own", status_code=418)

    app = app_with(
        {**at_fake, "resolve_user": resolving(resolve)},
        exception_handlers={NotAuthorizedException: handle},
    )
    with TestClient(app) as client:
        for method, path in (
            *(("POST", TOKEN), ("GET", STATUS), ("POST", INFERENCE), ("GET", MODELS)),
            *(("GET", "/me"), ("GET", "/me-sync")),
        ):
            answer = client.request(method, path, content=ask(), headers=JSON)
            assert answer.status_code == 403
            assert answer.json()["detail"] == "members only"
        own = client.post(f"{TOKEN}?own=1")
        assert (own.status_code, own.text) == (418, "my own")


def test_other_errors_of_resolve_user_appear_in_the_log_only(
    resolving: Any, at_fake: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def resolve(_connection: Connection) -> str:
        raise ZeroDivisionError("the inside")

    app = app_with({**at_fake, "resolve_user": resolving(resolve)}, debug=True)
    with TestClient(app) as client:
        answer = client.post(TOKEN)
    assert answer.status_code == 500
    assert "the inside" not in answer.text
    assert "the inside" in caplog.text


# -- handlers


def test_handlers_can_spend(
    resolving: Any,
    at_service: dict[str, Any],
    account: App,
    spent: Callable[[str], Decimal],
) -> None:
    account.connect("u1", monthlyUsd=1)

    @get("/sync", sync_to_thread=True, media_type=MediaType.TEXT)
    def view(wattfare_user_sync: NamedDependency[wattfare_mw.User]) -> str:
        return wattfare_user_sync.model("wattfare/echo").generate("a b").text

    @get("/async", media_type=MediaType.TEXT)
    async def async_view(wattfare_user: NamedDependency[AsyncUser]) -> str:
        return (await wattfare_user.model("wattfare/echo").generate("a b")).text

    @get("/stream", media_type=MediaType.TEXT)
    async def streamed(wattfare_user: NamedDependency[AsyncUser]) -> Stream:
        async def texts() -> AsyncIterator[str]:
            async with wattfare_user.model("wattfare/echo").stream("a b") as stream:
                async for text in stream.text_stream:
                    yield text

        return Stream(texts())

    class Chat(Controller):
        path = "/chat"

        @get("/direct", media_type=MediaType.TEXT)
        async def direct(self, wattfare_user: NamedDependency[AsyncUser]) -> Stream:
            return Stream(wattfare_user.model("wattfare/echo").stream("a b").text_stream)

    app = app_with(
        {**at_service, "resolve_user": resolving(by_header)},
        Router("/ai", route_handlers=[view, async_view, streamed, Chat]),
    )
    with TestClient(app) as client:
        for n, path in enumerate(("sync", "async", "stream", "chat/direct"), 1):
            answer = client.get(f"/ai/{path}")
            assert (answer.status_code, answer.text) == (200, "a b")
            assert spent("u1") == Decimal(str(cost(2 * n)))


def test_wattfare_errors_of_handlers_are_answered(at_service: dict[str, Any], account: App) -> None:
    @get("/spend", media_type=MediaType.TEXT)
    async def spend(wattfare_user: NamedDependency[AsyncUser]) -> str:
        return (await wattfare_user.model("wattfare/echo").generate("a b c")).text

    with TestClient(app_with(at_service, spend)) as client:
        anonymous = client.get("/spend", headers={"x-signed-out": "1"})
        assert (anonymous.status_code, anonymous.json()["error"]["code"]) == (401, "auth")
        first = client.get("/spend")
        assert (first.status_code, first.json()["error"]["code"]) == (402, "not_connected")
        account.connect("u1", monthlyUsd=0.00001)
        assert client.get("/spend").text == "a b c"
        last = client.get("/spend")
        assert (last.status_code, last.json()["error"]["code"]) == (402, "budget_exceeded")
        assert last.headers["content-type"] == "application/json"
        assert last.headers["cache-control"] == "no-store"


def test_exception_handlers_apply_by_layer(at_fake: dict[str, Any]) -> None:
    def own(_request: Any, error: Exception) -> Response[str]:
        return Response(f"own: {type(error).__name__}", status_code=418)

    @get("/plain")
    async def plain() -> None:
        raise WattfareBudgetExceededError

    @get("/handler", exception_handlers={WattfareBudgetExceededError: own})
    async def handler() -> None:
        raise WattfareBudgetExceededError

    class Layered(Controller):
        path = "/layered"
        exception_handlers = {WattfareNotConnectedError: own}  # noqa: RUF012

        @get("/caught")
        async def caught(self) -> None:
            raise WattfareNotConnectedError

        @get("/passed")
        async def passed(self) -> None:
            raise WattfareBudgetExceededError

    with TestClient(app_with(at_fake, plain, handler, Layered)) as client:
        assert client.get("/plain").json()["error"]["code"] == "budget_exceeded"
        assert client.get("/handler").text == "own: WattfareBudgetExceededError"
        assert client.get("/layered/caught").text == "own: WattfareNotConnectedError"
        assert client.get("/layered/passed").status_code == 402

    app = app_with(at_fake, plain, exception_handlers={WattfareError: own})
    with TestClient(app) as client:
        assert client.get("/plain").text == "own: WattfareBudgetExceededError"


def test_refused_key_in_a_handler_appears_in_the_log_only(
    at_fake: dict[str, Any], fake: FakeWattfare, caplog: pytest.LogCaptureFixture
) -> None:
    @get("/view")
    async def view(wattfare_user: NamedDependency[AsyncUser]) -> bool:
        return (await wattfare_user.status()).connected

    fake.script = lambda exchange: exchange.error("auth", 401)
    with TestClient(app_with(at_fake, view)) as client:
        assert client.get("/view").status_code == 401
    assert [r.levelno for r in caplog.records if "secret key" in r.message] == [logging.ERROR]


# -- the token route alone


@pytest.mark.parametrize("where", ["app", "router", "controller"])
def test_token_route_alone(
    where: str, resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def resolve(connection: Connection) -> str | None:
        assert isinstance(connection, ASGIConnection)
        if "stop" in connection.query_params:
            raise PermissionDeniedException("members only")
        return by_header(connection)

    wattfare = AsyncWattfare(**at_fake)
    route = session_route("/token", wattfare, resolving(resolve), resolving(lambda _request: 7))

    class Billing(Controller):
        path = "/sub"
        token = route

    handlers: dict[str, Any] = {
        "app": route,
        "router": Router("/sub", route_handlers=[route]),
        "controller": Billing,
    }
    path = "/token" if where == "app" else "/sub/token"
    app = Litestar(
        [handlers[where]],
        logging_config=None,
        on_shutdown=[wattfare.aclose],
        csrf_config=CSRFConfig("a secret of some length"),
        exception_handlers={WattfareError: wattfare_error_handler},
    )
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
        wrong = browser.get(path)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert wrong.json()["error"]["code"] == "invalid_request"
        stopped = browser.post(f"{path}?stop=1")
        assert (stopped.status_code, stopped.json()["detail"]) == (403, "members only")
        fake.script = lambda exchange: exchange.error("invalid_request", 409)
        assert browser.post(path).json()["error"]["message"] == "No."
        assert browser.get("/schema/openapi.json").status_code == 200


def test_app_with_a_path_says_what_is_not_served(at_fake: dict[str, Any]) -> None:
    plugin = WattfarePlugin(resolve_user=lambda _connection: "u1", **at_fake)
    with TestClient(Litestar([], plugins=[plugin], path="/v1")) as client:
        assert client.post(f"/v1{TOKEN}").status_code == 200
        answer = client.post("/v1/api/wattfare/embeddings")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "invalid_request")
