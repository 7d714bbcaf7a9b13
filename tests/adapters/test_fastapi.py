"""The FastAPI adapter: the app's own dependencies choose the payer."""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, HTTPException, Security, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from support.fake_wattfare import DONE, FakeWattfare, word
from support.rules import INFERENCE, JSON, MODELS, STATUS, TOKEN, ask, cost
from support.service import App
from wattfare_fastapi import (
    CurrentUser,
    CurrentUserSync,
    add_wattfare,
    get_user,
    get_user_sync,
    wattfare_responses,
)

from wattfare_mw import (
    AsyncUser,
    ConnectionStatus,
    CreatedSession,
    User,
    WattfareAuthError,
    WattfareError,
    current_async_user,
    current_user,
)
from wattfare_mw.errors import Shortfall

PATHS = (("POST", TOKEN), ("GET", STATUS), ("DELETE", STATUS), ("GET", MODELS), ("POST", INFERENCE))


class Account(BaseModel):
    id: int


class SignInFirstError(Exception):
    """An error of the app, for which it has a handler."""


class Members:
    """The app's own sign-in: a bearer token, looked up in a database."""

    bearer = OAuth2PasswordBearer(tokenUrl="/token", scopes={"spend": "Spend your budget."})

    def __init__(self) -> None:
        self.events: list[str] = []

    async def database(self) -> AsyncIterator[dict[str, int]]:
        self.events.append("open")
        try:
            yield {"of ann": 1, "of bob": 2}
        finally:
            self.events.append("close")

    def database_sync(self) -> Iterator[dict[str, int]]:
        self.events.append("open")
        try:
            yield {"of ann": 1, "of bob": 2}
        finally:
            self.events.append("close")


members = Members()


@pytest.fixture(autouse=True)
def _no_events() -> None:
    members.events.clear()


async def current_account(
    token: Annotated[str, Depends(members.bearer)],
    database: Annotated[dict[str, int], Depends(members.database)],
) -> Account:
    if token not in database:
        raise HTTPException(403, "unknown token", {"x-ours": "1"})
    return Account(id=database[token])


def current_account_sync(
    token: Annotated[str, Depends(members.bearer)],
    database: Annotated[dict[str, int], Depends(members.database_sync)],
) -> Account:
    if token not in database:
        raise HTTPException(403, "unknown token", {"x-ours": "1"})
    return Account(id=database[token])


async def account_id(account: Annotated[Account, Depends(current_account)]) -> int:
    return account.id


def account_id_sync(account: Annotated[Account, Depends(current_account_sync)]) -> int:
    return account.id


ANN = {"authorization": "Bearer of ann"}
BOB = {"authorization": "Bearer of bob"}


@pytest.fixture(params=["async", "sync", "Depends", "Annotated"])
def resolve_user(request: pytest.FixtureRequest) -> Any:
    """A dependency that uses the app's own sign-in."""
    return {
        "async": account_id,
        "sync": account_id_sync,
        "Depends": Depends(account_id),
        "Annotated": Annotated[int, Depends(account_id)],
    }[request.param]


def new_app(options: dict[str, Any], **more: Any) -> FastAPI:
    app = FastAPI()
    add_wattfare(app, **{"resolve_user": account_id, **options, **more})

    @app.get("/me")
    async def me(user: CurrentUser) -> str:
        return user.id

    @app.get("/me-sync")
    def me_sync(user: CurrentUserSync) -> str:
        return user.id

    return app


# -- who pays


def test_sign_in_of_the_app_chooses_the_payer(
    resolve_user: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    with TestClient(new_app(at_fake, resolve_user=resolve_user)) as client:
        assert client.post(TOKEN, headers=ANN).status_code == 200
        assert fake.next("/sessions").json["appUserId"] == "1"
        assert client.get(STATUS, headers=BOB).status_code == 200
        assert fake.next("/status").query == {"appUserId": ["2"]}
        assert client.post(INFERENCE, content=ask(), headers=JSON | BOB).status_code == 200
        assert fake.next().user == "2"
        assert client.get(f"{MODELS}/wattfare/echo", headers=ANN).status_code in (200, 404)
        assert client.get("/me", headers=ANN).json() == "1"
        assert client.get("/me-sync", headers=BOB).json() == "2"


def test_app_handles_the_errors_of_its_sign_in(
    resolve_user: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    paths = [*PATHS, ("GET", f"{MODELS}/x"), ("GET", "/me"), ("GET", "/me-sync")]
    with TestClient(new_app(at_fake, resolve_user=resolve_user)) as client:
        for method, path in paths:
            headers = JSON if path == INFERENCE else {}
            anonymous = client.request(method, path, headers=headers)
            assert (anonymous.status_code, anonymous.json()) == (
                401,
                {"detail": "Not authenticated"},
            )
            assert anonymous.headers["www-authenticate"] == "Bearer"
            unknown = client.request(
                method, path, headers={**headers, "authorization": "Bearer of carl"}
            )
            assert (unknown.status_code, unknown.json()) == (403, {"detail": "unknown token"})
            assert unknown.headers["x-ours"] == "1"
    assert not fake.exchanges


def test_error_handler_of_the_app_is_called(
    at_fake: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(x_error: Annotated[str, fastapi.Header()]) -> None:
        raise {"ours": SignInFirstError, "auth": WattfareAuthError}.get(x_error, ValueError)("!")

    async def handle(_request: fastapi.Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"sign": "in"}, 418)

    app = new_app(at_fake, resolve_user=refuse)
    app.add_exception_handler(SignInFirstError, handle)
    with TestClient(app, raise_server_exceptions=False) as client:
        for path in (STATUS, "/me"):
            ours = client.get(path, headers={"x-error": "ours"})
            assert (ours.status_code, ours.json()) == (418, {"sign": "in"})
            assert client.get(path, headers={"x-error": "auth"}).status_code == 401
            # FastAPI answers a missing parameter.
            assert client.get(path).status_code == 422
        caplog.clear()
        bug = client.get(STATUS, headers={"x-error": "bug"})
    assert (bug.status_code, bug.json()["error"]["code"]) == (500, "unknown")
    assert "ValueError" in caplog.text


def test_stream_does_not_hold_the_database_session(
    resolve_user: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    seen: list[str] = []

    def script(exchange: Any) -> None:
        seen.extend(members.events)
        exchange.stream(word("one"), DONE)

    fake.script = script
    with TestClient(new_app(at_fake, resolve_user=resolve_user)) as client:
        answer = client.post(INFERENCE, content=ask(stream=True), headers=JSON | ANN)
    assert answer.content == word("one") + DONE
    assert seen == ["open", "close"]


def test_dependency_overrides_take_effect(
    resolve_user: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = new_app(at_fake, resolve_user=resolve_user)
    inner = current_account_sync if resolve_user is account_id_sync else current_account
    app.dependency_overrides[inner] = lambda: Account(id=77)
    with TestClient(app) as client:
        assert client.post(TOKEN).status_code == 200
        assert fake.next("/sessions").json["appUserId"] == "77"
        assert client.get("/me").json() == client.get("/me-sync").json() == "77"

        class Fake:
            id = "fake"

        app.dependency_overrides = {get_user: Fake, get_user_sync: Fake}
        assert client.get("/me").json() == client.get("/me-sync").json() == "fake"
    assert members.events == []


@pytest.mark.parametrize("kind", ["lambda", "Request", "HTTPConnection", "async", "object"])
def test_resolve_user_may_be_a_function_of_the_request(
    kind: str, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def by_request(request: fastapi.Request) -> str | None:
        return request.session.get("user")

    def by_connection(connection: HTTPConnection) -> str | None:
        return connection.session.get("user")

    async def in_loop(request: fastapi.Request) -> str | None:
        return request.session.get("user")

    class Sessions:
        def __call__(self, request: fastapi.Request) -> str | None:
            return request.session.get("user")

    resolve = {
        "lambda": lambda request: request.session.get("user"),
        "Request": by_request,
        "HTTPConnection": by_connection,
        "async": in_loop,
        "object": Sessions(),
    }[kind]
    app = new_app(at_fake, resolve_user=resolve)
    app.add_middleware(SessionMiddleware, secret_key="not secret")

    @app.post("/sign-in/{name}")
    async def sign_in(request: fastapi.Request, name: str) -> None:
        request.session["user"] = name

    @app.websocket("/chat")
    async def chat(websocket: WebSocket, user: CurrentUser) -> None:
        await websocket.accept()
        await websocket.send_text(user.id)
        await websocket.close()

    with TestClient(app) as client:
        anonymous = client.post(TOKEN)
        assert (anonymous.status_code, anonymous.json()["error"]["code"]) == (401, "auth")
        client.post("/sign-in/ann")
        assert client.post(TOKEN).status_code == 200
        assert fake.next("/sessions").json["appUserId"] == "ann"
        assert client.get("/me").json() == client.get("/me-sync").json() == "ann"
        with client.websocket_connect("/chat") as socket:
            assert socket.receive_text() == "ann"
        app.dependency_overrides[resolve] = lambda: "another"
        assert client.get("/me").json() == "another"


def test_dependency_in_a_websocket(at_service: dict[str, Any], account: App) -> None:
    def by_cookie(user_id: Annotated[int | None, Cookie()] = None) -> int | None:
        return user_id

    account.connect("7")
    app = new_app(at_service, resolve_user=by_cookie)

    @app.websocket("/chat")
    async def chat(websocket: WebSocket, user: CurrentUser) -> None:
        await websocket.accept()
        answer = await user.model("wattfare/echo").generate(await websocket.receive_text())
        await websocket.send_text(answer.text)
        await websocket.close()

    client = TestClient(app, cookies={"user_id": "7"})
    with client, client.websocket_connect("/chat") as socket:
        socket.send_text("a b")
        assert socket.receive_text() == "a b"


def test_security_scopes_are_passed(at_fake: dict[str, Any]) -> None:
    seen: list[list[str]] = []

    def member(scopes: SecurityScopes, token: Annotated[str, Depends(members.bearer)]) -> str:
        seen.append(scopes.scopes)
        return token

    app = new_app(at_fake, resolve_user=Security(member, scopes=["spend"]))
    with TestClient(app) as client:
        assert client.get(STATUS, headers=ANN).status_code == 200
        paths = client.get("/openapi.json").json()["paths"]
    assert seen == [["spend"]]
    assert paths[STATUS]["get"]["security"] == [{"OAuth2PasswordBearer": ["spend"]}]


def test_cap_and_label_may_be_dependencies(at_fake: dict[str, Any], fake: FakeWattfare) -> None:
    def cap(account: Annotated[Account, Depends(current_account)]) -> int:
        return 50 * account.id

    async def label(account: Annotated[Account, Depends(current_account)]) -> str:
        return f"account {account.id}"

    app = new_app(at_fake, request_limit=cap, account_label=label)
    with TestClient(app) as client:
        assert client.post(TOKEN, headers=BOB).status_code == 200
    sent = fake.next("/sessions").json
    assert sent["requestLimit"] == {"monthlyUsd": 100}
    assert sent["accountLabel"] == "account 2"


def test_dependencies_of_the_app_run_before_every_path(at_fake: dict[str, Any]) -> None:
    def open_for_business(x_closed: Annotated[str | None, fastapi.Header()] = None) -> None:
        if x_closed:
            raise HTTPException(503, "closed")

    app = FastAPI(dependencies=[Depends(open_for_business)])
    add_wattfare(app, resolve_user=lambda _request: "u1", **at_fake)
    with TestClient(app) as client:
        for method, path in PATHS:
            assert client.request(method, path, headers={"x-closed": "1"}).status_code == 503
        assert client.get(STATUS).status_code == 200


def test_dependency_cannot_read_the_body(
    at_fake: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def by_body(request: fastapi.Request, x: str = "") -> str:
        return (await request.json())["user"]

    with TestClient(new_app(at_fake, resolve_user=by_body)) as client:
        assert client.post(INFERENCE, content=ask(), headers=JSON).status_code == 500
    assert "cannot read the request's body" in caplog.text


def test_error_of_the_starlette_adapter_names_this_one(at_fake: dict[str, Any]) -> None:
    from wattfare_starlette import add_wattfare as add_to_starlette

    signed_in = Depends(current_account)
    for resolve in (account_id, lambda user=signed_in: user.id):
        with pytest.raises(TypeError, match="wattfare_fastapi"):
            add_to_starlette(FastAPI(), resolve_user=resolve, **at_fake)


# -- endpoints


def test_endpoints_can_spend(
    at_service: dict[str, Any], account: App, spent: Callable[[str], Decimal]
) -> None:
    account.connect("1", monthlyUsd=0.000019)
    router = APIRouter(prefix="/ai")

    @router.get("/async")
    async def asynchronous(user: Annotated[AsyncUser, Depends(get_user)]) -> str:
        return (await user.model("wattfare/echo").generate("a b")).text

    @router.get("/sync")
    def synchronous(user: Annotated[User, Depends(get_user_sync)]) -> str:
        return user.model("wattfare/echo").generate("a b").text

    @router.get("/stream")
    async def stream(user: CurrentUser) -> StreamingResponse:
        return StreamingResponse(user.model("wattfare/echo").stream("a b").text_stream)

    class View:
        def __init__(self, user: CurrentUserSync) -> None:
            self.user = user

        def answer(self) -> str:
            return self.user.model("wattfare/echo").generate("a b").text

    @router.get("/class")
    def in_class(view: Annotated[View, Depends()]) -> str:
        return view.answer()

    app = new_app(at_service)
    app.include_router(router)
    with TestClient(app, headers=ANN) as client:
        for path in ("async", "sync", "stream"):
            answer = client.get(f"/ai/{path}")
            assert (answer.status_code, answer.text.strip('"')) == (200, "a b")
        last = client.get("/ai/class")
        assert (last.status_code, last.json()["error"]["code"]) == (402, "budget_exceeded")
        stranger = client.get("/ai/class", headers=BOB)
        assert (stranger.status_code, stranger.json()["error"]["code"]) == (402, "not_connected")
    assert spent("1") == Decimal(str(cost(6)))


def test_current_user_is_the_user_of_the_request(
    at_service: dict[str, Any], account: App, spent: Callable[[str], Decimal]
) -> None:
    account.connect("1", monthlyUsd=1)
    model = current_user.model("wattfare/echo")
    async_model = current_async_user.model("wattfare/echo")
    app = FastAPI()
    add_wattfare(app, resolve_user=account_id, current_user=True, **at_service)

    @app.get("/sync")
    def synchronous() -> str:
        return model.generate("a b").text

    @app.get("/async")
    async def asynchronous() -> str:
        return (await async_model.generate("a b")).text

    with TestClient(app) as client:
        for path in ("/sync", "/async"):
            assert client.get(path, headers=ANN).json() == "a b"
            assert client.get(path).json() == {"detail": "Not authenticated"}
            refused = client.get(path, headers={"authorization": "Bearer of carl"})
            assert (refused.status_code, refused.json()) == (403, {"detail": "unknown token"})
    assert spent("1") == Decimal(str(cost(4)))


# -- the OpenAPI document


def test_document_shows_the_paths_and_the_sign_in(
    resolve_user: Any, at_fake: dict[str, Any]
) -> None:
    app = new_app(at_fake, resolve_user=resolve_user)
    with TestClient(app) as client:
        document = client.get("/openapi.json").json()
        assert client.get("/docs").status_code == 200
    for method, path in PATHS:
        operation = document["paths"][path][method.lower()]
        assert operation["security"] == [{"OAuth2PasswordBearer": []}]
        assert operation["tags"] == ["wattfare"]
        for status in ("401", "402", "403", "429"):
            answer = operation["responses"][status]["content"]["application/json"]["schema"]
            assert answer == {"$ref": "#/components/schemas/WattfareErrorResponse"}
    chat = document["paths"][INFERENCE]["post"]
    assert "messages" in str(chat["requestBody"])
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    names = [o["operationId"] for p in document["paths"].values() for o in p.values()]
    assert len(names) == len(set(names))


def test_operation_ids_follow_the_apps_function(at_fake: dict[str, Any]) -> None:
    app = FastAPI(generate_unique_id_function=lambda route: f"{route.tags[0]}-{route.name}")
    add_wattfare(app, resolve_user=account_id, **at_fake)
    operations = app.openapi()["paths"][STATUS]
    assert {method: of["operationId"] for method, of in operations.items()} == {
        "get": "wattfare-wattfare_status_get",
        "delete": "wattfare-wattfare_status_delete",
    }


def test_models_of_the_document_have_the_fields_of_the_protocol(at_fake: dict[str, Any]) -> None:
    schemas = new_app(at_fake).openapi()["components"]["schemas"]
    for struct, name in (
        (ConnectionStatus, "WattfareConnectionStatus"),
        (CreatedSession, "WattfareSession"),
    ):
        assert tuple(schemas[name]["properties"]) == struct.__struct_encode_fields__
    assert schemas["WattfareLimits"]["properties"]["monthlyUsd"]["anyOf"][0]["type"] == "number"
    error = WattfareError(
        "No.",
        upstream_code="x",
        manage_url="https://a.example",
        shortfall=Shortfall(
            needed_usd=Decimal(1),
            remaining_usd=Decimal(1),
            resets_at=datetime.fromtimestamp(1, UTC),
            limited_by="cap",
        ),
    )
    wire = error.to_wire()["error"]
    assert set(wire) == set(schemas["WattfareErrorDetail"]["properties"])


def test_app_can_document_the_errors_of_its_endpoints(at_fake: dict[str, Any]) -> None:
    app = FastAPI()
    add_wattfare(app, resolve_user=account_id, include_in_schema=False, **at_fake)

    @app.get("/me", responses=wattfare_responses)
    async def me(user: CurrentUser) -> str:
        return user.id

    document = app.openapi()
    assert list(document["paths"]) == ["/me"]
    answers = document["paths"]["/me"]["get"]["responses"]
    assert {"200", "401", "402", "403", "429"} <= set(answers)
    assert "WattfareErrorDetail" in document["components"]["schemas"]


def test_disabled_paths_are_not_in_the_document(at_fake: dict[str, Any]) -> None:
    app = new_app(at_fake, token_path=None, status_path=None, inference_path="/v1/chat/completions")
    assert {*app.openapi()["paths"]} == {"/v1/chat/completions", "/v1/models", "/me", "/me-sync"}


# -- the place of the routes


def test_paths_win_over_catch_all_routes_of_the_app(at_fake: dict[str, Any], tmp_path: Any) -> None:
    (tmp_path / "index.html").write_text("the page")
    app = FastAPI()
    app.mount("/", StaticFiles(directory=tmp_path, html=True))
    add_wattfare(app, resolve_user=lambda _request: "u1", **at_fake)
    with TestClient(app) as client:
        assert client.get("/").text == "the page"
        for method, path in PATHS[:4]:
            assert client.request(method, path).status_code < 300


def test_any_method_has_a_json_answer(at_fake: dict[str, Any]) -> None:
    with TestClient(new_app(at_fake)) as client:
        for path in (TOKEN, STATUS, MODELS, INFERENCE):
            for method in ("PUT", "PATCH", "OPTIONS", "BREW"):
                answer = client.request(method, path)
                assert answer.status_code == 405
                assert answer.json()["error"]["code"] == "invalid_request"
                assert answer.headers["allow"]
        assert client.head(MODELS, headers=ANN).status_code == 200


def test_grant_needs_no_sign_in(at_fake: dict[str, Any], fake: FakeWattfare) -> None:
    app = new_app(at_fake, allow_grants=True)
    with TestClient(app) as client:
        headers = JSON | {"x-wattfare-grant": "gt_1"}
        assert client.post(INFERENCE, content=ask(), headers=headers).status_code == 200
    assert fake.next().headers["x-wattfare-grant"] == "gt_1"


def test_mounted_app_and_root_path(at_fake: dict[str, Any]) -> None:
    inner = new_app(at_fake)
    outer = FastAPI()
    outer.mount("/v1", inner)
    for root in ("", "/behind"):
        client = TestClient(outer, root_path=root, headers=ANN)
        assert client.post(f"{root}/v1{TOKEN}").status_code == 200
        assert client.get(f"{root}/v1/me").json() == "1"
        assert client.post(TOKEN).status_code == 404


def test_app_may_have_two_sets_of_paths(at_fake: dict[str, Any], fake: FakeWattfare) -> None:
    app = new_app(at_fake)
    more = {"token_path": "/b/token", "status_path": "/b/status", "inference_path": "/b/ask"}
    add_wattfare(app, resolve_user=lambda _request: "b", **more, **at_fake)
    with TestClient(app) as client:
        assert client.post(TOKEN, headers=ANN).status_code == 200
        assert fake.next("/sessions").json["appUserId"] == "1"
        assert client.post("/b/token").status_code == 200
        assert fake.next("/sessions").json["appUserId"] == "b"


def test_dependency_that_renews_a_cookie(at_fake: dict[str, Any]) -> None:
    def renewed(response: fastapi.Response) -> str:
        response.set_cookie("session", "renewed")
        return "u1"

    with TestClient(new_app(at_fake, resolve_user=renewed)) as client:
        answer = client.post(INFERENCE, content=ask(), headers=JSON)
        assert answer.headers.get_list("set-cookie") == ["session=renewed; Path=/; SameSite=lax"]
        assert answer.headers.get_list("content-length") == [str(len(answer.content))]


def test_answer_has_one_content_type(at_service: dict[str, Any], account: App) -> None:
    account.connect("1")
    with TestClient(new_app(at_service)) as client:
        status = client.get(STATUS, headers=ANN)
        stream = client.post(
            INFERENCE, content=ask("wattfare/echo", stream=True), headers=JSON | ANN
        )
    assert status.headers.get_list("content-type") == ["application/json"]
    assert stream.headers.get_list("content-type") == ["text/event-stream"]


def test_started_app_is_refused(at_fake: dict[str, Any]) -> None:
    app = FastAPI()
    with TestClient(app), pytest.raises(RuntimeError, match="has already started"):
        add_wattfare(app, resolve_user=account_id, **at_fake)


@pytest.mark.parametrize("option", [Annotated[int, "id"], Annotated[int, Depends()], Depends()])
def test_dependency_without_a_function_is_refused(option: Any, at_fake: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must have a function"):
        add_wattfare(FastAPI(), resolve_user=option, **at_fake)


def test_missing_key_raises_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATTFARE_SECRET_KEY", raising=False)
    with pytest.raises(WattfareAuthError, match="WATTFARE_SECRET_KEY"):
        add_wattfare(FastAPI(), resolve_user=account_id)


def test_reprs_hide_the_key(at_fake: dict[str, Any]) -> None:
    app = new_app(at_fake)
    for shown in (app.user_middleware, app.routes, vars(app)):
        assert at_fake["secret_key"] not in repr(shown)
