"""What ``resolve_user`` may return: an id of a usual type, never the text of a missing user."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID, uuid4

import flask
import pytest
from django.utils.functional import SimpleLazyObject
from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar
from litestar.testing import TestClient as LitestarClient
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient as StarletteClient
from support.drivers import INFERENCE, KINDS, TOKEN
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from wattfare_flask import WattfareMiddleware as FlaskWattfare
from wattfare_flask import get_user, session_view
from wattfare_litestar import WattfarePlugin, session_route
from wattfare_starlette import add_wattfare, session_endpoint

from wattfare_mw import AsyncWattfare, Wattfare
from wattfare_mw.users import AppError, NotSignedInError, user_id_of

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

Post = Callable[[str], int]
Make = Callable[[Callable[[Any], Any], dict[str, Any], ExitStack], Post]


def neutral(kind: str) -> Make:
    def make(resolve_user: Any, at: dict[str, Any], stack: ExitStack) -> Post:
        driver = KINDS[kind](resolve_user=resolve_user, **at)
        stack.callback(driver.close)
        json_type = {"content-type": "application/json"}
        body = b'{"model": "m", "messages": []}'
        return lambda path: driver.request("POST", path, json_type, body).status

    return make


def flask_app(resolve_user: Any, at: dict[str, Any], stack: ExitStack) -> Post:
    app = flask.Flask("ids")
    extension = FlaskWattfare(app, resolve_user=resolve_user, **at)
    stack.callback(extension.close)
    client = app.test_client()
    return lambda path: client.post(path, json=BODY).status_code


def starlette_app(resolve_user: Any, at: dict[str, Any], stack: ExitStack) -> Post:
    app = Starlette()
    add_wattfare(app, resolve_user=resolve_user, **at)
    client = stack.enter_context(StarletteClient(app))
    return lambda path: client.post(path, json=BODY).status_code


def litestar_app(resolve_user: Any, at: dict[str, Any], stack: ExitStack) -> Post:
    app = Litestar(plugins=[WattfarePlugin(resolve_user=resolve_user, **at)], logging_config=None)
    client = stack.enter_context(LitestarClient(app))
    return lambda path: client.post(path, json=BODY).status_code


def flask_token_route(resolve_user: Any, at: dict[str, Any], stack: ExitStack) -> Post:
    wf = stack.enter_context(Wattfare(at["secret_key"], base_url=at["base_url"]))
    app = flask.Flask("ids")
    app.add_url_rule(TOKEN, view_func=session_view(wf, resolve_user), methods=["POST"])
    return lambda _: app.test_client().post(TOKEN).status_code


def starlette_token_route(resolve_user: Any, at: dict[str, Any], stack: ExitStack) -> Post:
    wf = AsyncWattfare(at["secret_key"], base_url=at["base_url"])
    route = Route(TOKEN, session_endpoint(wf, resolve_user), methods=["POST"])
    client = stack.enter_context(StarletteClient(Starlette(routes=[route])))
    return lambda _: client.post(TOKEN).status_code


def litestar_token_route(resolve_user: Any, at: dict[str, Any], stack: ExitStack) -> Post:
    wf = AsyncWattfare(at["secret_key"], base_url=at["base_url"])
    app = Litestar([session_route(TOKEN, wf, resolve_user)], logging_config=None)
    client = stack.enter_context(LitestarClient(app))
    return lambda _: client.post(TOKEN).status_code


MAKERS = {
    "asgi": neutral("asgi"),
    "wsgi": neutral("wsgi"),
    "flask": flask_app,
    "starlette": starlette_app,
    "litestar": litestar_app,
    "flask token route": flask_token_route,
    "starlette token route": starlette_token_route,
    "litestar token route": litestar_token_route,
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, fake: FakeWattfare) -> Iterator[Callable[[Any], Post]]:
    """Makes an app of each kind with this ``resolve_user``."""
    at = {"secret_key": SECRET_KEY, "base_url": fake.url}
    with ExitStack() as stack:
        yield lambda resolve_user: MAKERS[request.param](resolve_user, at, stack)


def who_paid(fake: FakeWattfare, path: str) -> str:
    if path == TOKEN or not [one for one in fake.exchanges if one.path != "/sessions"]:
        return fake.next("/sessions").json["appUserId"]
    return fake.next().user or ""


ID = UUID("6F9619FF-8B86-D011-B42D-00C04FC964FF")


class Tenant(StrEnum):
    A = "a1"


class Mixed(str, Enum):  # noqa: UP042 - its `str()` is another text
    A = "a1"


class Number(int, Enum):
    A = 7


class Text(str):
    def __str__(self) -> str:
        return "mallory"


LAZY = "2f6d8e60-0b2c-4c5e-8a54-8d5f3c7b9a11"


@pytest.mark.parametrize(
    ("resolved", "user"),
    [
        *((Tenant.A, "a1"), (Mixed.A, "a1"), (Number.A, "7"), (Text("u"), "u")),
        *((SimpleLazyObject(lambda: "u1"), "u1"), (SimpleLazyObject(lambda: 5), "5")),
        (SimpleLazyObject(lambda: UUID(LAZY)), LAZY),
    ],
)
def test_subclass_or_lazy_object_becomes_plain_text(resolved: object, user: str) -> None:
    assert user_id_of(resolved) == user
    assert type(user_id_of(resolved)) is str


def test_lazy_none_is_an_anonymous_visitor() -> None:
    with pytest.raises(NotSignedInError):
        user_id_of(SimpleLazyObject(lambda: None))
    with pytest.raises(AppError, match="not SimpleLazyObject"):
        user_id_of(SimpleLazyObject(lambda: True))


@pytest.mark.parametrize("path", [TOKEN, INFERENCE])
def test_usual_id_types_are_accepted(make: Any, fake: FakeWattfare, path: str) -> None:
    resolved: list[object] = [None]
    call = make(lambda _: resolved[0])
    for resolved[0] in (7, 0, -3, 10**40, ID, "u 1"):
        assert call(path) == 200
        assert who_paid(fake, path) == str(resolved[0])
        fake.forget()


NO_USERS = ["None", "null", "undefined", "AnonymousUser", "False", "NaN", "", " ", "user:None"]


@pytest.mark.parametrize("path", [TOKEN, INFERENCE])
def test_text_of_a_missing_user_is_the_apps_error(
    make: Any, fake: FakeWattfare, caplog: Any, path: str
) -> None:
    resolved: list[object] = [None]
    call = make(lambda _: resolved[0])
    for resolved[0] in (*NO_USERS, True, False):
        caplog.clear()
        assert call(path) == 500
        assert not fake.exchanges
        [record] = [record for record in caplog.records if record.name == "wattfare_mw"]
        assert record.levelno == logging.ERROR
        assert record.getMessage().startswith("resolve_user ")
        if isinstance(resolved[0], str):
            assert "or None if no user is signed in" in record.getMessage()
            assert "return user.id if user else None" in record.getMessage()


def test_none_is_an_anonymous_visitor(make: Any, fake: FakeWattfare) -> None:
    assert make(lambda _: None)(TOKEN) == 401
    assert not fake.exchanges


class Anonymous:
    pass


@pytest.mark.parametrize(
    "text",
    [
        *("nan", "false", "[object Object]", "\t\n"),
        *("user_None", "user-None", "tenant/None", "a:AnonymousUser"),
        *(repr(Anonymous), repr(len), "<AnonymousUser>", "<function f at 0x7f0e5c0>"),
        "<flask_login.mixins.AnonymousUserMixin object at 0x7f0e5c0>",
    ],
)
def test_similar_texts_of_a_missing_user_are_refused(text: str) -> None:
    with pytest.raises(AppError, match="It returned "):
        user_id_of(text)


@pytest.mark.parametrize(
    "text",
    [
        *("7", "Nonette", "annull", "no-one", "0", "-", "nancy", "<3", "a<b>", "None1"),
        *("null@x.org", "alice-null", "alice-none", "bob_undefined", "x:nan", "xNone"),
        *("Null", "none", "NONE", "nil", "true", "anonymoususer", "[]", " u1 "),
    ],
)
def test_other_texts_are_accepted(text: str) -> None:
    assert user_id_of(text) == text


@pytest.mark.parametrize(
    "resolved",
    [7.0, b"u1", [], {}, object(), 1 << 20_000, "x" * 257, "a\0b"],
    ids=lambda value: type(value).__name__,
)
def test_invalid_user_id_is_refused(resolved: object) -> None:
    with pytest.raises(AppError, match="A user id must "):
        user_id_of(resolved)


@given(st.integers(-(10**18), 10**18) | st.uuids())
def test_different_users_have_different_ids(resolved: int | UUID) -> None:
    assert user_id_of(resolved) == str(resolved)
    assert user_id_of(str(resolved)) == str(resolved)
    assert user_id_of(uuid4()) != user_id_of(resolved)


def test_app_of_the_flask_tutorial_works(fake: FakeWattfare) -> None:
    """Its user ids come from a database: ``session["user_id"] = user["id"]`` is an int."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.row_factory = sqlite3.Row
    database.execute("CREATE TABLE user (id INTEGER PRIMARY KEY AUTOINCREMENT, username TEXT)")
    database.execute("INSERT INTO user (username) VALUES ('ada')")
    app = flask.Flask("flaskr")
    app.secret_key = "dev"

    @app.post("/auth/login")
    def login() -> str:
        user = database.execute("SELECT * FROM user WHERE username = 'ada'").fetchone()
        flask.session.clear()
        flask.session["user_id"] = user["id"]
        return ""

    @app.get("/me")
    def me() -> str:
        return get_user().id

    extension = FlaskWattfare(
        app,
        resolve_user=lambda request: flask.session.get("user_id"),
        secret_key=SECRET_KEY,
        base_url=fake.url,
    )
    client = app.test_client()
    assert client.post(TOKEN).status_code == 401
    assert client.post("/auth/login").status_code == 200
    assert client.post(TOKEN).status_code == 200
    assert fake.next("/sessions").json["appUserId"] == "1"
    assert client.get("/me").text == "1"
    extension.close()
    database.close()
