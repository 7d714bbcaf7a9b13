"""The Flask adapter, in Flask's own context and style."""

from __future__ import annotations

import gc
import io
import json
import logging
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from wsgiref.validate import validator

import flask
import flask_login
import pytest
from support.fake_wattfare import DONE, SECRET_KEY, FakeWattfare, held_stream, word
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
from support.service import App, Service
from wattfare_flask import WattfareMiddleware, get_user, session_view
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from wattfare_mw import Wattfare, WattfareAuthError, WattfareBudgetExceededError, WattfareError
from wattfare_mw.body_memory import MAX_PAYER_BYTES


def by_header(request: flask.Request) -> str | None:
    return None if "x-signed-out" in request.headers else request.headers.get("x-user", "u1")


def new_app() -> flask.Flask:
    app = flask.Flask("app")
    app.secret_key = "not secret"
    return app


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes every extension that a test has created."""
    made: list[WattfareMiddleware] = []
    init_app = WattfareMiddleware.init_app

    def kept(self: WattfareMiddleware, app: flask.Flask) -> None:
        init_app(self, app)
        made.append(self)

    monkeypatch.setattr(WattfareMiddleware, "init_app", kept)
    yield
    for extension in made:
        extension.close()


def wrapped(options: dict[str, Any], **more: Any) -> flask.Flask:
    app = new_app()
    WattfareMiddleware(app, **{"resolve_user": by_header, **options, **more})
    return app


# -- who pays


@pytest.fixture(params=["sync", "async"])
def resolving(request: pytest.FixtureRequest) -> Callable[[Callable[[Any], Any]], Any]:
    """Wraps a function as a sync or an async resolve_user."""

    def make(function: Callable[[Any], Any]) -> Any:
        if request.param == "sync":
            return function

        async def resolve(request: flask.Request) -> Any:
            return function(request)

        return resolve

    return make


def test_resolve_user_runs_in_flasks_context(
    resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = new_app()

    @app.before_request
    def before() -> None:
        flask.g.seen = flask.request.path

    @app.post("/login")
    def login() -> str:
        flask.session["user"] = "from the session"
        return "ok"

    def resolve(request: Any) -> str | None:
        assert request is flask.request
        assert flask.g.seen == request.path
        assert flask.current_app.name == "app"
        return flask.session.get("user")

    WattfareMiddleware(app, resolve_user=resolving(resolve), **at_fake)
    client = app.test_client()
    assert client.post(TOKEN).status_code == 401
    client.post("/login")
    assert client.post(TOKEN).get_json() == {"token": "a.b.c", "expiresAt": 1_800_000_000}
    assert fake.next("/sessions").json["appUserId"] == "from the session"
    assert client.get(STATUS).status_code == 200
    assert fake.next("/status").query == {"appUserId": ["from the session"]}
    assert client.post(INFERENCE, data=ask(), headers=JSON).status_code == 200
    assert fake.next().user == "from the session"
    assert client.get(MODELS).status_code == 200


def test_user_of_flask_login_pays(
    resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = new_app()
    manager = flask_login.LoginManager(app)

    class Member(flask_login.UserMixin):
        id = "member 1"

    @manager.user_loader
    def load(_id: str) -> Member:
        return Member()

    @app.post("/login")
    def login() -> str:
        flask_login.login_user(Member())
        return "ok"

    def resolve(_request: flask.Request) -> str | None:
        user = flask_login.current_user
        return user.get_id() if user.is_authenticated else None

    WattfareMiddleware(app, resolve_user=resolving(resolve), **at_fake)
    client = app.test_client()
    assert client.post(INFERENCE, data=ask(), headers=JSON).status_code == 401
    client.post("/login")
    assert client.post(INFERENCE, data=ask(), headers=JSON).status_code == 200
    assert fake.next().user == "member 1"


def test_cap_depends_on_the_request(
    resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def limit(request: flask.Request) -> int:
        assert request is flask.request
        return {"pro": 50}.get(request.args["plan"], 5)

    client = wrapped(at_fake, request_limit=resolving(limit)).test_client()
    for plan, usd in (("pro", 50), ("free", 5)):
        assert client.post(f"{TOKEN}?plan={plan}").status_code == 200
        assert fake.next("/sessions").json["requestLimit"] == {"monthlyUsd": usd}


def test_before_request_runs_first(at_fake: dict[str, Any], fake: FakeWattfare) -> None:
    app = wrapped(at_fake)
    app.before_request(lambda: ("closed for today", 503))
    answer = app.test_client().post(TOKEN)
    assert (answer.status_code, answer.text) == (503, "closed for today")
    assert not fake.exchanges


@pytest.mark.parametrize("read", ["get_data", "get_json", "form", "not at all"])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_that_was_already_read(
    read: str, chunked: bool, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = wrapped(at_fake)

    @app.before_request
    def before() -> None:
        if read != "not at all":
            reader = getattr(flask.request, read)
            assert reader is not None
            if callable(reader):
                reader()

    answer = send_body(app, ask().encode(), chunked=chunked)
    assert answer.status_code == 200
    assert fake.next().body == ask().encode()


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer)
        self.count += size
        return size


def send_body(
    app: flask.Flask, body: bytes, *, chunked: bool, stream: io.BytesIO | None = None
) -> Any:
    environ: dict[str, Any] = {}
    if chunked:  # otherwise the test client would send the length
        environ = {
            "wsgi.input_terminated": True,
            "HTTP_TRANSFER_ENCODING": "chunked",
            "CONTENT_LENGTH": "",
        }
    return app.test_client().post(
        INFERENCE,
        input_stream=stream or io.BytesIO(body),
        content_length=None if chunked else len(body),
        content_type="application/json",
        environ_overrides=environ,
    )


def test_body_of_unknown_length_takes_bounded_memory(
    at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = flask.Flask("app")
    extension = WattfareMiddleware(app, resolve_user=lambda request: "u1", **at_fake)
    claim = extension._extensions[0]._gate._bodies.claim("u1")
    claim.grow(MAX_PAYER_BYTES)
    stream = Counted(b"x" * 1_000_000)
    assert send_body(app, b"", chunked=True, stream=stream).status_code == 503
    assert stream.count < 200_000
    claim.release()
    extension.close()


class Pieces(io.BytesIO):
    """Returns less than requested, as a socket does."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None or size < 0 else min(size, 7))

    def readinto(self, buffer: Any, /) -> int:
        return super().readinto(memoryview(buffer)[:7])


@pytest.mark.parametrize("chunked", [False, True])
def test_body_in_pieces_is_read_to_its_end(
    chunked: bool, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    body = ask().encode()
    answer = send_body(wrapped(at_fake), body, chunked=chunked, stream=Pieces(body))
    assert answer.status_code == 200, answer.data
    assert fake.next().body == body


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_body_is_not_read(
    chunked: bool, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    body = ask(user="x" * 1_000_000).encode()
    stream = Counted(body)
    app = wrapped(at_fake, max_body_bytes=1000)
    answer = send_body(app, body, chunked=chunked, stream=stream)
    assert answer.status_code == 413
    assert answer.get_json()["error"]["code"] == "invalid_request"
    assert stream.count <= 1001
    assert not fake.exchanges


@pytest.mark.parametrize("chunked", [False, True])
def test_body_limit_of_the_app_applies(chunked: bool, at_fake: dict[str, Any]) -> None:
    app = wrapped(at_fake)
    app.config["MAX_CONTENT_LENGTH"] = 500
    answer = send_body(app, ask(user="x" * 1000).encode(), chunked=chunked)
    assert answer.status_code == 413
    assert answer.get_json()["error"] == {
        "code": "invalid_request",
        "message": "The body is larger than 500 bytes.",
    }
    small = ask().encode()
    assert send_body(app, small, chunked=chunked).status_code == 200


# -- Flask's own answers


def test_flask_handles_aborts_of_resolve_user(
    resolving: Any, at_fake: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def resolve(request: flask.Request) -> str:
        if "to" in request.args:
            flask.abort(flask.redirect("/login"))
        flask.abort(403, "members only")

    app = wrapped(at_fake, resolve_user=resolving(resolve))
    app.add_url_rule("/view", view_func=lambda: get_user().id)
    client = app.test_client()
    for method, path in (("POST", TOKEN), ("GET", STATUS), ("POST", INFERENCE), ("GET", MODELS)):
        answer = client.open(path, method=method, data=ask(), headers=JSON)
        assert answer.status_code == 403
        assert "members only" in answer.text
    answer = client.post(f"{TOKEN}?to=1")
    assert (answer.status_code, answer.location) == (302, "/login")

    assert client.get("/view").status_code == 403

    other = wrapped(at_fake, resolve_user=resolving(resolve))
    other.register_error_handler(403, lambda error: ({"no": error.description}, 403))
    assert other.test_client().post(TOKEN).get_json() == {"no": "members only"}
    assert not caplog.records


def test_other_errors_of_resolve_user_appear_in_the_log_only(
    resolving: Any, at_fake: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def resolve(_request: flask.Request) -> str:
        raise ZeroDivisionError("the inside")

    app = wrapped(at_fake, resolve_user=resolving(resolve))
    app.testing = True  # Flask itself would raise it in the test
    answer = app.test_client().post(TOKEN)
    assert answer.status_code == 500
    assert "the inside" not in answer.text
    assert "the inside" in caplog.text


# -- views


def test_view_can_spend(
    resolving: Any,
    at_service: dict[str, Any],
    account: App,
    spent: Callable[[str], Decimal],
) -> None:
    account.connect("u1", monthlyUsd=1)
    app = wrapped(at_service, resolve_user=resolving(by_header))

    @app.get("/sync")
    def view() -> dict[str, Any]:
        done = get_user().model("wattfare/echo").generate("one two three")
        return {"text": done.text}

    @app.get("/async")
    async def async_view() -> dict[str, Any]:
        done = get_user().model("wattfare/echo").generate("one two three")
        return {"text": done.text}

    @app.get("/stream")
    def stream() -> flask.Response:
        stream = get_user().model("wattfare/echo").stream("one two three")
        answer = flask.Response(stream.text_stream, mimetype="text/plain")
        answer.call_on_close(stream.close)
        return answer

    client = app.test_client()
    for n, path in enumerate(("/sync", "/async", "/stream"), 1):
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        assert "one two three" in answer.text
        assert spent("u1") == Decimal(str(cost(3 * n)))
    assert client.get("/sync", headers={"x-signed-out": "1"}).status_code == 401


def test_wattfare_errors_of_views_are_answered(
    at_service: dict[str, Any], account: App, caplog: pytest.LogCaptureFixture
) -> None:
    app = wrapped(at_service)

    @app.get("/spend")
    def spend() -> str:
        return get_user().model("wattfare/echo").generate("one two three").text

    client = app.test_client()
    anonymous = client.get("/spend", headers={"x-signed-out": "1"})
    assert (anonymous.status_code, anonymous.get_json()["error"]["code"]) == (401, "auth")
    first = client.get("/spend")
    assert (first.status_code, first.get_json()["error"]["code"]) == (402, "not_connected")
    account.connect("u1", monthlyUsd=0.00001)
    assert client.get("/spend").text == "one two three"
    last = client.get("/spend")
    assert (last.status_code, last.get_json()["error"]["code"]) == (402, "budget_exceeded")
    assert last.headers["cache-control"] == "no-store"
    assert not caplog.records


def test_refused_key_in_a_view_appears_in_the_log_only(
    at_fake: dict[str, Any], fake: FakeWattfare, caplog: pytest.LogCaptureFixture
) -> None:
    app = wrapped(at_fake)
    app.add_url_rule("/view", view_func=lambda: str(get_user().status()))
    fake.script = lambda exchange: exchange.error("auth", 401)
    assert app.test_client().get("/view").status_code == 401
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "secret key" in record.message


@pytest.mark.parametrize("first", [True, False])
def test_error_handler_of_the_app_is_kept(first: bool, at_fake: dict[str, Any]) -> None:
    app = new_app()

    def handle(error: WattfareError) -> tuple[str, int]:
        return f"ours: {error.code}", 418

    if first:
        app.register_error_handler(WattfareError, handle)
    WattfareMiddleware(app, resolve_user=by_header, **at_fake)
    if not first:
        app.register_error_handler(WattfareError, handle)

    @app.get("/view")
    def view() -> str:
        raise WattfareBudgetExceededError

    answer = app.test_client().get("/view")
    assert (answer.status_code, answer.text) == (418, "ours: budget_exceeded")


def test_each_request_has_its_own_user(at_fake: dict[str, Any]) -> None:
    app = wrapped(at_fake)
    app.add_url_rule("/me", view_func=lambda: get_user().id)
    # If an application context exists, Flask reuses it, with its `g`, for the requests within it.
    with app.app_context():
        client = app.test_client()
        assert client.get("/me", headers={"x-user": "alice"}).text == "alice"
        assert client.get("/me", headers={"x-user": "bob"}).text == "bob"


def test_get_user_without_init_app_raises() -> None:
    app = new_app()
    with app.test_request_context(), pytest.raises(RuntimeError, match="init_app"):
        get_user()


# -- setup


def test_options_come_from_the_config(fake: FakeWattfare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATTFARE_SECRET_KEY", raising=False)
    app = new_app()
    with pytest.raises(WattfareAuthError):
        WattfareMiddleware(app, resolve_user=by_header)
    app.config.update(WATTFARE_SECRET_KEY=SECRET_KEY, WATTFARE_BASE_URL=fake.url)
    WattfareMiddleware(app, resolve_user=by_header)
    assert app.test_client().post(TOKEN).status_code == 200
    assert fake.next("/sessions").headers["authorization"] == f"Bearer {SECRET_KEY}"


def test_client_option_wins_over_the_config(fake: FakeWattfare) -> None:
    app = new_app()
    app.config["WATTFARE_SECRET_KEY"] = "sk_test_another_one"
    with Wattfare(SECRET_KEY, base_url=fake.url) as client:
        WattfareMiddleware(app, resolve_user=by_header, client=client)
        assert app.test_client().post(TOKEN).status_code == 200
    assert fake.next("/sessions").headers["authorization"] == f"Bearer {SECRET_KEY}"


def test_missing_or_invalid_option_raises(at_fake: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="resolve_user"):
        WattfareMiddleware(new_app(), **at_fake)
    with pytest.raises(TypeError, match="resolve_user"):
        WattfareMiddleware(new_app(), resolve_user="u1", **at_fake)
    with pytest.raises(WattfareError, match=r"request_limit is invalid\. A monthly cap must be"):
        wrapped(at_fake, request_limit="much")


def test_factory_with_two_apps(service: Service) -> None:
    wattfare = WattfareMiddleware(resolve_user=by_header)
    with pytest.raises(RuntimeError, match="0 apps"):
        Client(wattfare).get("/")

    def create_app(account: App) -> flask.Flask:
        app = new_app()
        app.config["WATTFARE_SECRET_KEY"] = account.keys.secret_key
        app.config["WATTFARE_BASE_URL"] = service.url
        app.add_url_rule("/me", view_func=lambda: str(get_user().status().connected))
        wattfare.init_app(app)
        return app

    with service.app() as one, service.app() as two:
        one.connect("u1")
        with_one = create_app(one)
        assert Client(wattfare).get("/me").text == "True"
        with_two = create_app(two)
        # Each app has its own key.
        for app, connected in ((with_one, True), (with_two, False)):
            assert app.test_client().get("/me").text == str(connected)
            assert app.test_client().get(STATUS).get_json()["connected"] is connected
        with pytest.raises(RuntimeError, match="2 apps"):
            Client(wattfare).get("/me")


class CSRFProtect:
    """Flask-WTF's extension, as far as the adapter knows it."""

    def __init__(self) -> None:
        self._exempt_views: set[str] = set()

    def exempt(self, view: str) -> None:
        self._exempt_views.add(view)

    def init_app(self, app: flask.Flask) -> None:
        app.extensions["csrf"] = self

        @app.before_request
        def protect() -> None:
            view = app.view_functions.get(flask.request.endpoint or "")
            if view is None or f"{view.__module__}.{view.__name__}" in self._exempt_views:
                return
            if flask.request.method == "POST":
                flask.abort(400, "The CSRF token is missing.")


@pytest.mark.parametrize("first", [True, False])
def test_paths_are_exempt_from_flask_wtf(first: bool, at_fake: dict[str, Any]) -> None:
    app, csrf = new_app(), CSRFProtect()
    if first:
        csrf.init_app(app)
    WattfareMiddleware(app, resolve_user=by_header, **at_fake)
    if not first:
        csrf.init_app(app)
    app.add_url_rule("/form", "form", lambda: "", methods=["POST"])
    client = app.test_client()
    assert client.post(TOKEN).status_code == 200
    assert client.post(TOKEN, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post("/form").status_code == 400


def test_paths_can_be_disabled(at_fake: dict[str, Any]) -> None:
    app = wrapped(at_fake, token_path=None, status_path=None, inference_path="/café")
    client = app.test_client()
    assert client.post(TOKEN).status_code == 404
    assert client.get(STATUS).status_code == 404
    assert client.post("/café", data=ask(), headers=JSON).status_code == 200


def test_app_with_host_matching(at_fake: dict[str, Any]) -> None:
    app = flask.Flask("app", host_matching=True, static_host="static.example")
    WattfareMiddleware(app, resolve_user=by_header, **at_fake)
    for url in ("http://a.example", "http://b.example:8000"):
        assert app.test_client().post(TOKEN, base_url=url).status_code == 200


# -- as a WSGI app


@pytest.mark.parametrize("how", ["itself", "wsgi_app", "proxy outside", "proxy inside", "both"])
def test_extension_is_a_wsgi_app(how: str, at_fake: dict[str, Any]) -> None:
    app = new_app()
    app.add_url_rule("/host", view_func=lambda: flask.request.host)
    if how in ("proxy inside", "both"):
        app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1)  # type: ignore[method-assign]
    wattfare = WattfareMiddleware(app, resolve_user=by_header, **at_fake)
    served: Any = app
    if how == "itself":
        served = wattfare
    elif how == "wsgi_app":
        app.wsgi_app = wattfare  # type: ignore[method-assign]
    elif how == "proxy outside":
        app.wsgi_app = ProxyFix(wattfare, x_host=1)  # type: ignore[method-assign]
    else:
        served = wattfare
    if how == "both":
        app.wsgi_app = wattfare  # type: ignore[method-assign]
        served = app
    client = Client(validator(served))
    host = {"x-forwarded-host": "app.example"}
    seen = client.get("/host", headers=host)
    assert seen.text == ("app.example" if how.startswith(("proxy", "both")) else "localhost")
    seen.close()
    answer = client.post(TOKEN)
    assert answer.status_code == 200
    answer.close()


def test_paths_below_a_prefix(at_fake: dict[str, Any]) -> None:
    client = Client(DispatcherMiddleware(new_app(), {"/under": wrapped(at_fake)}))
    assert client.post(f"/under{TOKEN}").status_code == 200
    assert client.post(TOKEN).status_code == 404


# -- answers


@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: f"{r.method} {r.path} {r.status}")
def test_refusals_are_the_same_as_in_other_adapters(
    refused: Refused, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    answer = (
        wrapped(at_fake, **REFUSING)
        .test_client()
        .open(refused.path, method=refused.method, headers=refused.headers, data=refused.body)
    )
    check_refused(refused, answer.status_code, answer.headers, answer.data)
    assert not fake.exchanges


def test_head_and_preflight(at_fake: dict[str, Any]) -> None:
    client = wrapped(at_fake, **REFUSING).test_client()
    whole, head = client.get(STATUS), client.head(STATUS)
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.data))
    preflight = client.options(INFERENCE, headers=PREFLIGHT)
    check_preflight(preflight.status_code, preflight.headers)
    assert "content-type" not in preflight.headers


def test_trailing_slash_is_not_found(at_fake: dict[str, Any]) -> None:
    assert wrapped(at_fake).test_client().post(f"{TOKEN}/").status_code == 404


def test_paths_win_over_a_catch_all_route_of_the_app(at_fake: dict[str, Any]) -> None:
    app = new_app()
    app.add_url_rule("/<path:path>", view_func=lambda path: f"page {path}")
    WattfareMiddleware(app, resolve_user=by_header, **at_fake)
    client = app.test_client()
    assert client.get(STATUS).get_json()["connected"] is True
    assert client.get("/else").text == "page else"


def test_after_request_of_the_app_sees_our_answers(
    at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = wrapped(at_fake)
    seen: list[Any] = []

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        seen.append(response.is_streamed or response.get_data())
        response.headers["x-after"] = "1"
        response.call_on_close(lambda: seen.append("closed"))
        return response

    client = app.test_client()
    with client.post(TOKEN) as answer:
        assert answer.headers["x-after"] == "1"
    assert json.loads(seen[0])["token"] == "a.b.c"
    with client.post(INFERENCE, data=ask(stream=True), headers=JSON) as answer:
        assert answer.headers["x-after"] == "1"
        assert answer.data.endswith(DONE)
    assert seen[1:] == ["closed", True, "closed"]


# -- streams


def test_context_is_left_before_a_stream_starts(
    at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = wrapped(at_fake)
    happened: list[str] = []
    app.teardown_request(lambda _error: happened.append("request torn down"))
    app.teardown_appcontext(lambda _error: happened.append("app torn down"))

    def script(exchange: Any) -> None:
        exchange.stream(word("one "), word("two"), DONE)

    fake.script = script

    def start_response(status: str, _headers: Any, _error: Any = None) -> None:
        happened.append(status)

    builder = flask.testing.EnvironBuilder(app, INFERENCE, method="POST", data=ask(stream=True))
    builder.headers.update(JSON)
    answer = app(builder.get_environ(), start_response)
    assert happened == ["200 OK", "request torn down", "app torn down"]
    assert not flask.has_app_context()
    assert b"".join(answer) == word("one ") + word("two") + DONE
    answer.close()  # type: ignore[attr-defined]


def test_events_arrive_one_by_one_and_close_ends_the_call(
    at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    reports: list[Any] = []
    app = wrapped(at_fake, on_usage=lambda *args: reports.append(args))

    def first_word(exchange: Any) -> None:  # werkzeug's client waits for it
        exchange.start_stream()
        exchange.chunk(word("one "))

    fake.script = first_word
    answer = app.test_client().post(INFERENCE, data=ask(stream=True), headers=JSON)
    exchange = fake.next()
    chunks: Iterator[bytes] = answer.iter_encoded()
    assert next(chunks) == word("one ")
    exchange.chunk(word("two "))
    assert next(chunks) == word("two ")
    assert answer.headers["x-accel-buffering"] == "no"
    answer.close()
    exchange.wait_gone()
    assert reports == [("u1", "openai/gpt-4o", None, None)]


def test_failed_after_request_closes_the_stream(
    at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = wrapped(at_fake)
    app.logger.disabled = True  # a log record would keep the answer alive

    @app.after_request
    def after(_response: flask.Response) -> flask.Response:
        raise ZeroDivisionError

    fake.script = held_stream
    answer = app.test_client().post(INFERENCE, data=ask(stream=True), headers=JSON)
    assert answer.status_code == 500
    gc.collect()
    fake.next().wait_gone()


# -- the token route alone


@pytest.mark.parametrize("where", ["app", "blueprint"])
def test_token_route_alone(
    where: str, resolving: Any, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def resolve(request: flask.Request) -> str | None:
        assert request is flask.request
        if "abort" in request.args:
            flask.abort(403)
        return flask.session.get("user", by_header(request))

    app = new_app()
    with Wattfare(**at_fake) as client:
        view = session_view(client, resolving(resolve), resolving(lambda _request: 7))
        if where == "app":
            app.add_url_rule("/token", view_func=view, methods=["POST"])
        else:
            blueprint = flask.Blueprint("billing", __name__, url_prefix="/billing")
            blueprint.post("/token")(view)
            app.register_blueprint(blueprint)
        path = "/token" if where == "app" else "/billing/token"
        browser = app.test_client()
        assert browser.post(path).get_json() == {"token": "a.b.c", "expiresAt": 1_800_000_000}
        assert fake.next("/sessions").json == {
            "appUserId": "u1",
            "requestLimit": {"monthlyUsd": 7},
        }
        anonymous = browser.post(path, headers={"x-signed-out": "1"})
        assert (anonymous.status_code, anonymous.get_json()["error"]["code"]) == (401, "auth")
        other = browser.post(path, headers={"sec-fetch-site": "cross-site"})
        assert (other.status_code, other.get_json()["error"]["code"]) == (403, "invalid_request")
        assert browser.post(f"{path}?abort=1").status_code == 403
        fake.script = lambda exchange: exchange.error("invalid_request", 409)
        refused = browser.post(path)
        assert (refused.status_code, refused.get_json()["error"]["message"]) == (409, "No.")
