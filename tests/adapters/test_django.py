"""The Django adapter through Django's test clients, under the WSGI handler and the ASGI handler."""

from __future__ import annotations

import io
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core import checks
from django.core.exceptions import ImproperlyConfigured, PermissionDenied, SynchronousOnlyOperation
from django.http import Http404, HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.deprecation import MiddlewareMixin
from support.django_project import LATER, MIDDLEWARE, Browser
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.rules import (
    INFERENCE,
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
from wattfare_django import WattfareMiddleware, session_view
from wattfare_django.conf import OPTIONS
from wattfare_django.messages import aread_body, read_body

from wattfare_mw import AsyncWattfare, Wattfare, WattfareCurrentUserError, WattfareError
from wattfare_mw.body_memory import BodyMemory
from wattfare_mw.middleware.base import Middleware
from wattfare_mw.middleware.options import Options

pytestmark = pytest.mark.usefixtures("project")
HERE = __name__
ROOT = Path(__file__).parents[2]
OURS = "wattfare_django.WattfareMiddleware"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """The handler of Django that runs."""
    return request.param


@pytest.fixture
def setting() -> Iterator[Callable[..., None]]:
    """``setting(WATTFARE={…}, MIDDLEWARE=[…])`` until the end of the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(override_settings(**settings))


@pytest.fixture
def start(kind: str, setting: Any, at_fake: dict[str, Any]) -> Callable[..., Browser]:
    """``start(request_limit=5)``: a browser for the project with these options."""

    def start(options: dict[str, Any] | None = None, **more: Any) -> Browser:
        of_client = {
            name: more.pop(name) for name in list(more) if name not in Options.__annotations__
        }
        given = {**(at_fake if options is None else options), **more}
        setting(WATTFARE={name.upper(): value for name, value in given.items()})
        return Browser(kind, **of_client)

    return start


def by_header(request: HttpRequest) -> str | None:
    return None if "x-signed-out" in request.headers else request.headers.get("x-user", "u1")


async def by_header_async(request: HttpRequest) -> str | None:
    return by_header(request)


# -- who pays


def test_signed_in_user_pays(start: Any, fake: FakeWattfare) -> None:
    browser = start()
    for method, place in (("POST", TOKEN), ("GET", STATUS), ("POST", INFERENCE), ("GET", MODELS)):
        assert browser.ask(method, place, ask()).error == (401, "auth")
    user = browser.get("/sign-in/ann").body.decode()
    assert browser.post(TOKEN).json == {"token": "a.b.c", "expiresAt": 1_800_000_000}
    assert fake.next("/sessions").json["appUserId"] == user
    assert browser.get(STATUS).status == 200
    assert fake.next("/status").query == {"appUserId": [user]}
    assert browser.post(INFERENCE, ask()).status == 200
    assert fake.next().user == user
    streamed = browser.post(INFERENCE, ask(stream=True))
    assert streamed.streaming
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert fake.next().user == user
    assert browser.get(MODELS).status == 200


@pytest.mark.parametrize(
    "resolve", [by_header, by_header_async, f"{HERE}.by_header", f"{HERE}.by_header_async"]
)
def test_resolve_user_option_chooses_the_payer(
    resolve: Any, start: Any, fake: FakeWattfare
) -> None:
    browser = start(resolve_user=resolve)
    assert browser.post(INFERENCE, ask(), {"x-user": "u/2"}).status == 200
    assert fake.next().user == "u/2"
    assert browser.post(INFERENCE, ask(), {"x-signed-out": "1"}).error == (401, "auth")
    assert browser.get("/me", {"x-user": "bob"}).body == b"bob"


@pytest.mark.parametrize("is_async", [True, False])
def test_functions_get_djangos_request(is_async: bool, start: Any, fake: FakeWattfare) -> None:
    def resolve(request: Any) -> int:
        assert isinstance(request, HttpRequest)
        assert request.session.session_key is None
        return 7

    def limit(request: Any) -> int:
        return {"pro": 50}.get(request.GET["plan"], 5)

    def label(request: Any) -> str:
        return f"{request.GET['plan']}@example.com"

    def made(function: Any) -> Any:
        if not is_async:
            return function

        async def call(request: Any) -> Any:
            return function(request)

        return call

    browser = start(
        resolve_user=made(resolve), request_limit=made(limit), account_label=made(label)
    )
    for plan, usd in (("pro", 50), ("free", 5)):
        assert browser.post(f"{TOKEN}?plan={plan}").status == 200
        assert fake.next("/sessions").json == {
            "appUserId": "7",
            "requestLimit": {"monthlyUsd": usd},
            "accountLabel": f"{plan}@example.com",
        }


class OtherUser(MiddlewareMixin):
    """Sets only `request.user`, as token middleware does."""

    def process_request(self, request: Any) -> None:
        if "x-token" in request.headers:
            request.user = SimpleNamespace(is_authenticated=True, pk=uuid.UUID(int=5))
        if "x-auser" in request.headers:

            async def auser() -> Any:
                return SimpleNamespace(is_authenticated=True, pk="by auser")

            request.auser = auser


def test_user_set_by_other_middleware_pays(
    start: Any, setting: Any, fake: FakeWattfare, kind: str
) -> None:
    setting(MIDDLEWARE=[*MIDDLEWARE[:-1], f"{HERE}.OtherUser", OURS])
    browser = start()
    user = browser.get("/sign-in/ann").body.decode()
    for headers, payer in (({}, user), ({"x-token": "1"}, str(uuid.UUID(int=5)))):
        assert browser.post(INFERENCE, ask(), headers).status == 200
        assert fake.next().user == payer
        assert browser.get("/me", headers).body.decode() == payer
    if kind == "async":
        assert browser.post(INFERENCE, ask(), {"x-auser": "1"}).status == 200
        assert fake.next().user == "by auser"


def test_missing_authentication_middleware_is_named_in_the_log(
    start: Any, setting: Any, caplog: pytest.LogCaptureFixture
) -> None:
    setting(MIDDLEWARE=[OURS])
    assert start().post(TOKEN).status == 500
    assert "AuthenticationMiddleware" in caplog.text
    assert "RESOLVE_USER" in caplog.text


def refuse(request: HttpRequest) -> str:
    if "x-missing" in request.headers:
        raise Http404
    raise PermissionDenied


async def refuse_async(request: HttpRequest) -> str:
    return refuse(request)


@pytest.mark.parametrize("resolve", [refuse, refuse_async])
def test_django_handles_its_own_exceptions_of_resolve_user(resolve: Any, start: Any) -> None:
    browser = start(resolve_user=resolve)
    for method, place in (("POST", TOKEN), ("GET", STATUS), ("POST", INFERENCE), ("GET", MODELS)):
        answer = browser.ask(method, place, ask())
        assert (answer.status, b"403 Forbidden" in answer.body) == (403, True)
    assert browser.post(TOKEN, headers={"x-missing": "1"}).status == 404
    assert browser.get("/me").status == 403


def fail(_request: HttpRequest) -> str:
    raise ZeroDivisionError("the inside")


def test_other_errors_of_resolve_user_appear_in_the_log_only(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer = start(resolve_user=fail).post(TOKEN)
    assert answer.status == 500
    assert b"the inside" not in answer.body
    assert "the inside" in caplog.text


class Where(MiddlewareMixin):
    """Records where Django runs sync code, and with which connection."""

    def process_request(self, request: Any) -> None:
        request.where = where()


def where() -> Any:
    from django.db import connection

    return threading.get_ident(), id(connection._connections["default"])


def test_functions_run_where_django_runs_sync_code(
    start: Any, setting: Any, fake: FakeWattfare
) -> None:
    """Django closes the database connections of no other thread."""
    here: list[Any] = []

    def resolve(request: Any) -> str:
        here.append(request.where)
        assert where() == here[-1]
        return "u1"

    def limit(_request: HttpRequest) -> int:
        assert where() == here[-1]
        return 3

    used: list[Any] = []

    def on_usage(*told: Any) -> None:
        assert where() == here[-1]
        used.append(told)

    setting(MIDDLEWARE=[f"{HERE}.Where", *MIDDLEWARE])
    browser = start(resolve_user=resolve, request_limit=limit, on_usage=on_usage)
    assert browser.post(TOKEN).status == 200
    assert browser.post(INFERENCE, ask()).status == 200
    assert browser.post(INFERENCE, ask(stream=True)).status == 200
    assert [user for user, *_ in used] == ["u1", "u1"]


# -- views


def test_view_can_spend(
    start: Any, at_service: dict[str, Any], account: App, spent: Callable[[str], Decimal], kind: str
) -> None:
    browser = start(at_service)
    assert browser.get("/spend").error == (401, "auth")
    assert browser.get("/aspend").error == (401, "auth")
    user = browser.get("/sign-in/ann").body.decode()
    assert browser.get("/spend").error == (402, "not_connected")
    assert browser.get("/aspend").error == (402, "not_connected")
    account.connect(user, monthlyUsd=0.00004)
    # Django serves no sync stream under ASGI, and no async stream under WSGI.
    streams = ["/astream"] if kind == "async" else ["/stream"]
    for n, place in enumerate(["/spend", "/aspend", *streams], 1):
        answer = browser.get(place)
        assert answer.status == 200
        assert b"one two three" in answer.body
        assert spent(user) == Decimal(str(cost(3 * n)))
    account.connect(user, monthlyUsd=0.000001)
    for place in ("/spend", "/aspend"):
        refused = browser.get(place)
        assert refused.error == (402, "budget_exceeded")
        assert refused.headers["cache-control"] == "no-store"


def test_sync_budget_in_an_async_view(start: Any) -> None:
    browser = start(resolve_user=by_header)
    with pytest.raises(SynchronousOnlyOperation, match=r"await request\.awattfare\(\)"):
        browser.get("/ame")


class OwnHandler(MiddlewareMixin):
    def process_exception(self, _request: Any, error: Exception) -> Any:
        if isinstance(error, WattfareError):
            return HttpResponse(f"ours: {error.code}", status=418)
        return None


def test_project_can_handle_the_error_itself(start: Any, setting: Any) -> None:
    setting(MIDDLEWARE=[*MIDDLEWARE, f"{HERE}.OwnHandler"])
    answer = start().get("/spend")
    assert (answer.status, answer.body) == (418, b"ours: auth")


def test_other_errors_of_views_go_to_django(start: Any) -> None:
    browser = start(raise_request_exception=False)
    assert browser.get("/broken").status == 500


# -- answers that are the same in every adapter


@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: f"{r.method} {r.path} {r.status}")
def test_refusals_are_the_same_as_in_other_adapters(
    refused: Refused, start: Any, fake: FakeWattfare
) -> None:
    browser = start(resolve_user=by_header, **REFUSING)
    answer = browser.ask(refused.method, refused.path, refused.body, refused.headers)
    check_refused(refused, answer.status, answer.headers, answer.body)
    assert not fake.exchanges


def test_preflight_is_answered(start: Any) -> None:
    answer = start(resolve_user=by_header, **REFUSING).ask("OPTIONS", TOKEN, headers=PREFLIGHT)
    check_preflight(answer.status, answer.headers)
    assert "content-type" not in answer.headers


def test_delete_revokes_the_connection(start: Any, fake: FakeWattfare) -> None:
    answer = start(resolve_user=by_header).ask("DELETE", STATUS)
    assert (answer.status, answer.body) == (204, b"")
    assert "content-type" not in answer.headers


def test_files_for_browsers_are_served(start: Any) -> None:
    browser = start(client_path="/static/wattfare.js")
    answer = browser.get("/static/wattfare.js")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert browser.get("/static/wattfare-return").status == 200
    again = browser.get("/static/wattfare.js", {"if-none-match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_unserved_openai_paths_say_what_to_use_instead(start: Any) -> None:
    browser = start(resolve_user=by_header)
    answer = browser.post("/api/wattfare/responses")
    assert answer.error == (404, "invalid_request")
    assert "chat/completions" in answer.json["error"]["message"]
    assert browser.get(f"{MODELS}/openai/o1").json["id"] == "openai/o1"
    assert browser.get("/api/wattfare/other").headers["content-type"].startswith("text/html")
    # A route of the project wins, with its own 404.
    assert browser.get("/api/wattfare/embeddings").body == b"ours"


def test_paths_below_a_script_name(start: Any, setting: Any, kind: str) -> None:
    browser = start(resolve_user=by_header)
    if kind == "async":
        browser.client.defaults["root_path"] = "/shop"
        assert browser.get(f"/shop{STATUS}").status == 200
    else:
        assert browser.ask("GET", STATUS, SCRIPT_NAME="/shop").status == 200
    setting(FORCE_SCRIPT_NAME="/shop")
    place = f"/shop{STATUS}" if kind == "async" else STATUS
    assert browser.get(place).status == 200


# -- bodies


BIG = ask(user="x" * 3_000_000)


def test_body_larger_than_djangos_limit_is_read(start: Any, fake: FakeWattfare) -> None:
    assert start(resolve_user=by_header).post(INFERENCE, BIG).status == 200
    assert fake.next().body == BIG.encode()


class Reads(MiddlewareMixin):
    """Reads the body, as middleware that logs or checks a signature does."""

    def process_request(self, request: Any) -> None:
        how = request.headers.get("x-read")
        if how == "body":
            assert request.body
        elif how == "post":
            assert not request.POST
        elif how == "read":
            assert request.read()


@pytest.mark.parametrize("how", ["body", "post", "read"])
def test_body_that_other_middleware_has_read(
    how: str, start: Any, setting: Any, fake: FakeWattfare, caplog: pytest.LogCaptureFixture
) -> None:
    setting(MIDDLEWARE=[f"{HERE}.Reads", *MIDDLEWARE])
    answer = start(resolve_user=by_header).post(INFERENCE, ask(), {"x-read": how})
    if how == "read":  # the body is gone
        assert answer.status == 500
        assert "use request.body instead" in caplog.text
        return
    assert answer.status == 200
    assert fake.next().body == ask().encode()


class Counted(io.BytesIO):
    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def wsgi_request(stream: io.BytesIO, **environ: Any) -> Any:
    from django.core.handlers.wsgi import WSGIRequest

    return WSGIRequest(
        {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "wsgi.input": stream, **environ}
    )


def test_body_without_a_length_is_not_read() -> None:
    stream = Counted(b"x" * 5000)
    chunked = wsgi_request(stream, **{"wsgi.input_terminated": True})
    assert read_body(chunked, 5000) == b"x" * 5000
    with pytest.raises(WattfareError, match="larger than 1,000 bytes"):
        read_body(wsgi_request(Counted(b"x" * 5000), **{"wsgi.input_terminated": True}), 1000)
    # If a server does not end its input, it cannot be read to the end.
    assert read_body(wsgi_request(Counted(b"x" * 5000)), 5000) == b""


async def test_body_of_unknown_length_takes_bounded_memory() -> None:
    """``aread_body`` calls ``read_body`` in a thread."""
    claim = BodyMemory(payer_limit=300_000).claim("u1")
    stream = Counted(b"x" * 1_000_000)
    request = wsgi_request(stream, **{"wsgi.input_terminated": True})
    with claim.while_reading(), pytest.raises(WattfareError, match="large requests"):
        await aread_body(request, 2_000_000)
    assert stream.count < 400_000


def test_body_is_read_up_to_the_limit() -> None:
    stream = Counted(b"x" * 5000)
    with pytest.raises(WattfareError, match="larger than 1,000 bytes"):
        read_body(wsgi_request(stream, CONTENT_LENGTH="5000"), 1000)
    assert stream.count <= 1001


def test_body_that_ends_too_early_is_refused() -> None:
    with pytest.raises(WattfareError, match="body is incomplete"):
        read_body(wsgi_request(io.BytesIO(b"half"), CONTENT_LENGTH="50"), 1000)


# -- together with other middleware


@pytest.mark.parametrize("order", ["before", "behind"])
def test_csrf_protection_does_not_apply_to_the_paths(
    order: str, start: Any, setting: Any, fake: FakeWattfare
) -> None:
    csrf = "django.middleware.csrf.CsrfViewMiddleware"
    others = [name for name in MIDDLEWARE if name != csrf]
    setting(MIDDLEWARE=[csrf, *others] if order == "before" else [*others, csrf])
    browser = start(resolve_user=by_header, enforce_csrf_checks=True)
    assert browser.post(INFERENCE, ask()).status == 200
    assert browser.post(INFERENCE, ask(), {"sec-fetch-site": "cross-site"}).status == 403
    assert browser.post("/count").status == 403  # Django's own protection is on


def test_session_changed_by_resolve_user_is_saved(start: Any, fake: FakeWattfare) -> None:
    def resolve(request: Any) -> str:
        request.session["seen"] = request.session.get("seen", 0) + 1
        return f"seen {request.session['seen']}"

    browser = start(resolve_user=resolve)
    for n in (1, 2):
        assert browser.post(INFERENCE, ask(stream=True)).status == 200
        assert fake.next().user == f"seen {n}"


GZIP = "django.middleware.gzip.GZipMiddleware"
LOCALE = "django.middleware.locale.LocaleMiddleware"
CONDITIONAL = "django.middleware.http.ConditionalGetMiddleware"


def test_streams_are_not_compressed(start: Any, setting: Any, fake: FakeWattfare) -> None:
    setting(MIDDLEWARE=[GZIP, CONDITIONAL, MIDDLEWARE[0], LOCALE, *MIDDLEWARE[1:]])
    browser = start(resolve_user=by_header, client_path="/wattfare.js")
    accepts = {"accept-encoding": "gzip, br"}
    streamed = browser.post(INFERENCE, ask(stream=True), accepts)
    assert "content-encoding" not in streamed.headers
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    module = browser.get("/wattfare.js", accepts)
    assert module.headers["content-encoding"] == "gzip"
    known = {**accepts, "if-none-match": module.headers["etag"]}
    assert browser.get("/wattfare.js", known).status == 304
    assert browser.post(INFERENCE, ask(), accepts).status == 200
    assert browser.get(STATUS, accepts).status == 200


class OnlySync:
    """Sync-only middleware."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)


class OnlyAsync:
    """Async-only middleware."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        assert iscoroutinefunction(get_response)
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: Any) -> Any:
        return await self.get_response(request)


@pytest.mark.parametrize("other", ["OnlySync", "OnlyAsync"])
@pytest.mark.parametrize("order", ["before", "behind"])
def test_sync_only_and_async_only_middleware(
    other: str, order: str, start: Any, setting: Any, fake: FakeWattfare
) -> None:
    name = f"{HERE}.{other}"
    setting(MIDDLEWARE=[name, *MIDDLEWARE] if order == "before" else [*MIDDLEWARE, name])
    browser = start()
    user = browser.get("/sign-in/ann").body.decode()
    assert browser.post(INFERENCE, ask()).status == 200
    assert fake.next().user == user
    streamed = browser.post(INFERENCE, ask(stream=True))
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert fake.next().user == user
    assert browser.get("/me").body.decode() == user
    assert browser.post("/api/wattfare/responses").error == (404, "invalid_request")


# -- the settings


@pytest.mark.parametrize(
    ("wattfare", "expected"),
    [
        ({"SECRETKEY": "x"}, r"no option 'SECRETKEY'. Did you mean SECRET_KEY"),
        ({"secret_key": "x"}, r"Did you mean SECRET_KEY"),
        ({"RESOLVE": "x"}, r"Did you mean RESOLVE_USER"),
        ({"ALLOWED_ORIGIN": []}, r"Did you mean ALLOWED_ORIGINS"),
        ({"ZZZ": []}, r"The options are ACCOUNT_LABEL, .*TOKEN_PATH"),
        ({3: []}, r"no option 3"),
        (["SECRET_KEY"], "must be a dict of options"),
        ({"RESOLVE_USER": "nowhere.at.all"}, r'WATTFARE\["RESOLVE_USER"\]'),
        ({"RESOLVE_USER": f"{HERE}.nothing"}, "nothing"),
        ({"RESOLVE_USER": 5}, "resolve_user"),
        ({"MAX_BODY_BYTES": "x"}, "max_body_bytes"),
        ({"TOKEN_PATH": "no-slash"}, "no-slash"),
        ({"SECRET_KEY": ""}, "secret key"),
    ],
)
def test_invalid_setting_raises_improperly_configured(
    wattfare: Any, expected: str, kind: str, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATTFARE_SECRET_KEY", SECRET_KEY)
    setting(WATTFARE=wattfare)
    with pytest.raises(ImproperlyConfigured, match=expected):
        Browser(kind).get("/count")
    (error,) = checks.run_checks()
    assert error.id in ("wattfare.E001", "wattfare.E002")
    if error.id == "wattfare.E002":
        (page,) = re.findall(r"docs/\S+\.md", error.hint)
        assert "`max_calls_per_user`" in (ROOT / page).read_text()


def test_missing_secret_key_raises(
    kind: str, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATTFARE_SECRET_KEY", raising=False)
    with pytest.raises(ImproperlyConfigured, match="secret key"):
        Browser(kind).get("/count")
    (error,) = checks.run_checks()
    assert error.id == "wattfare.E001"
    assert error.is_serious()
    assert "WATTFARE_SECRET_KEY" in error.hint
    assert "sk_test_" in error.hint


def test_environment_variables_are_read(
    kind: str, setting: Any, fake: FakeWattfare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATTFARE_SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("WATTFARE_BASE_URL", fake.url)
    browser = Browser(kind)
    browser.get("/sign-in/ann")
    assert browser.post(TOKEN).status == 200
    assert checks.run_checks() == []


def test_every_option_of_the_middleware_is_a_setting() -> None:
    import inspect

    known = set(inspect.signature(Middleware.__init__).parameters)
    assert set(OPTIONS.values()) == known - {"self", "app", "interface"}
    assert {name.lower() for name in OPTIONS} == set(OPTIONS.values())


def test_repr_of_the_settings_hides_the_key(start: Any) -> None:
    from django.conf import settings

    start().get("/count")
    assert SECRET_KEY not in repr(settings.WATTFARE)
    assert settings.WATTFARE["SECRET_KEY"] == SECRET_KEY


@pytest.mark.parametrize("client_kind", [Wattfare, AsyncWattfare])
def test_client_setting_is_used(
    client_kind: Any, client_of: Any, start: Any, fake: FakeWattfare
) -> None:
    made = client_of(client_kind)
    assert start({}, client=made, resolve_user=by_header).post(INFERENCE, ask()).status == 200


# -- manage.py check


SESSION = MIDDLEWARE[0]
AUTHENTICATION = MIDDLEWARE[3]


@pytest.mark.parametrize(
    ("middleware", "ids"),
    [
        (MIDDLEWARE, []),
        ([SESSION, AUTHENTICATION], ["wattfare.W001"]),
        ([SESSION, OURS], ["wattfare.W002"]),
        ([SESSION, OURS, AUTHENTICATION], ["wattfare.E003"]),
        ([OURS, SESSION, AUTHENTICATION], ["wattfare.E003", "wattfare.E003"]),
        ([GZIP, *MIDDLEWARE], ["wattfare.W004"]),
        ([SESSION, AUTHENTICATION, f"{HERE}.Subclass"], []),
        ([SESSION, AUTHENTICATION, "nowhere.at.all", OURS], []),
    ],
)
def test_checks_find_wrong_middleware_settings(
    middleware: list[str], ids: list[str], setting: Any, at_fake: dict[str, Any]
) -> None:
    given = {name.upper(): value for name, value in at_fake.items()}
    setting(MIDDLEWARE=middleware, WATTFARE=given)
    found = checks.run_checks()
    assert [each.id for each in found] == ids
    assert all(each.hint for each in found)
    setting(WATTFARE={**given, "RESOLVE_USER": by_header})
    found = checks.run_checks()
    assert not any(each.is_serious() for each in found)


def test_check_names_the_middleware_to_replace(setting: Any, at_fake: dict[str, Any]) -> None:
    setting(
        MIDDLEWARE=[SESSION, AUTHENTICATION, "wattfare_mw.WattfareMiddleware"],
        WATTFARE={name.upper(): value for name, value in at_fake.items()},
    )
    (found,) = checks.run_checks()
    assert found.id == "wattfare.W001"
    assert found.hint == f"Replace 'wattfare_mw.WattfareMiddleware' with {OURS!r}."


class Subclass(WattfareMiddleware):
    """A project's own subclass."""


# -- the token route alone


@pytest.fixture
def client_of(at_fake: dict[str, Any]) -> Iterator[Callable[[Any], Any]]:
    """``client_of(Wattfare)``: a client of this kind, closed at the end of the test."""
    with ExitStack() as stack:

        def make(kind: Any) -> Any:
            made = kind(at_fake["secret_key"], base_url=at_fake["base_url"])
            if kind is Wattfare:  # an event loop closes the async client itself
                stack.callback(made.close)
            return made

        yield make


def views_at(client: Any, **more: Any) -> Any:
    view = session_view(client, **more)
    urls = ModuleType("urls")
    urls.urlpatterns = [path("t", view), path("in/<name>", signed_in)]  # type: ignore[attr-defined]
    return urls


def signed_in(request: Any, name: str) -> HttpResponse:
    from support.django_project import sign_in

    return sign_in(request, name)


@pytest.mark.parametrize("client_kind", [Wattfare, AsyncWattfare])
def test_token_route_alone(
    client_kind: Any, kind: str, client_of: Any, setting: Any, fake: FakeWattfare
) -> None:
    client = client_of(client_kind)
    others = [*MIDDLEWARE[:-1], "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    urls = views_at(client, request_limit=lambda request: len(request.GET["n"]))
    setting(MIDDLEWARE=others, ROOT_URLCONF=urls)
    browser = Browser(kind, enforce_csrf_checks=True)
    assert browser.post("/t?n=x").error == (401, "auth")
    assert browser.post("/t", headers={"sec-fetch-site": "cross-site"}).status == 403
    assert browser.get("/t").status == 405
    setting(MIDDLEWARE=MIDDLEWARE[:-1])
    browser = Browser(kind, enforce_csrf_checks=True)
    user = browser.get("/in/ann").body.decode()
    assert browser.post("/t?n=xx").json["token"] == "a.b.c"
    asked = fake.next("/sessions").json
    assert asked == {"appUserId": user, "requestLimit": {"monthlyUsd": 2}}


@pytest.mark.parametrize("client_kind", [Wattfare, AsyncWattfare])
def test_token_route_with_another_user(
    client_kind: Any, kind: str, client_of: Any, setting: Any, fake: FakeWattfare
) -> None:
    client = client_of(client_kind)
    setting(ROOT_URLCONF=views_at(client, resolve_user=by_header), MIDDLEWARE=[])
    assert Browser(kind).post("/t", headers={"x-user": "bob"}).status == 200
    assert fake.next("/sessions").json["appUserId"] == "bob"
    setting(ROOT_URLCONF=views_at(client, resolve_user=refuse))
    assert Browser(kind).post("/t").status == 403


# -- the current user


@pytest.mark.parametrize("resolve", ["by default", by_header, by_header_async])
def test_current_user_is_the_user_of_the_request(
    resolve: Any, start: Any, kind: str, fake: FakeWattfare
) -> None:
    options = {} if resolve == "by default" else {"resolve_user": resolve}
    browser = start(current_user=True, **options)
    user = "u1"
    if not options:
        assert browser.get("/current").error == (401, "auth")
        assert browser.get("/current-async").error == (401, "auth")
        user = browser.get("/sign-in/ann").body.decode()
    stream = "/current-stream-async" if kind == "async" else "/current-stream"
    for place in ("/current", "/current-async"):
        assert browser.get(place).body.decode() == user
    assert browser.get(stream).body.decode() == f"{user} again {user}"
    if options:  # requests see only their own user
        for name in ("ann", "bob"):
            assert browser.get("/current", {"x-user": name}).body.decode() == name
            answer = browser.get(stream, {"x-user": name})
            assert answer.body.decode() == f"{name} again {name}"
    assert browser.post(INFERENCE, ask(stream=True)).status == 200
    assert fake.next().user == user


def test_current_user_ends_with_its_request(start: Any) -> None:
    LATER.clear()
    assert start(current_user=True, resolve_user=by_header).get("/later").body == b"u1"
    LATER.pop()()
    (error,) = LATER
    assert isinstance(error, WattfareCurrentUserError)


def test_sync_current_user_in_an_async_view(start: Any) -> None:
    browser = start(current_user=True, resolve_user=by_header)
    with pytest.raises(SynchronousOnlyOperation, match="current_async_user"):
        browser.get("/current-confused")


def test_current_user_without_the_option_is_refused(start: Any) -> None:
    browser = start(resolve_user=by_header, raise_request_exception=False)
    assert browser.get("/current").status == 500


@pytest.mark.parametrize("other", ["OnlySync", "OnlyAsync"])
@pytest.mark.parametrize("order", ["before", "behind"])
def test_current_user_together_with_other_middleware(
    other: str, order: str, start: Any, setting: Any
) -> None:
    name = f"{HERE}.{other}"
    setting(MIDDLEWARE=[name, *MIDDLEWARE] if order == "before" else [*MIDDLEWARE, name])
    browser = start(current_user=True, resolve_user=by_header_async)
    for place in ("/current", "/current-async"):
        assert browser.get(place, {"x-user": "bob"}).body == b"bob"
