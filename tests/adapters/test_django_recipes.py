"""The recipes of docs/django.md: REST framework, Ninja, an anonymous visitor, and a test."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from support.django_project import MIDDLEWARE, Browser
from support.rules import STATUS, TOKEN
from support.service import App, environment

pytestmark = pytest.mark.usefixtures("project")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, at_service: dict[str, Any]) -> Iterator[Any]:
    """``recipe("rest", RESOLVE_USER="rest.user_of_token")``: serves one of the modules."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "django_recipes"))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with ExitStack() as stack:

        def load(name: str, **options: Any) -> Any:
            module = importlib.import_module(name)
            stack.callback(sys.modules.pop, name)
            wattfare = {key.upper(): value for key, value in at_service.items()} | options
            settings = {"WATTFARE": wattfare, "MIDDLEWARE": MIDDLEWARE, "ROOT_URLCONF": name}
            stack.enter_context(override_settings(**settings))
            return module

        yield load


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def new_user(name: str) -> Any:
    from django.contrib.auth.models import User

    return User.objects.get_or_create(username=name)[0]


def check_views(
    browser: Browser, paths: list[str], token: str, user: str, account: App, spent: Any
) -> None:
    """Checks that the views and Wattfare's paths identify the user by the token alone."""
    signed = {"authorization": token}
    assert browser.post(TOKEN).error == (401, "auth")
    assert browser.get(STATUS, {"authorization": "Token none"}).error == (401, "auth")
    assert browser.post(TOKEN, headers=signed).status == 200
    for path in paths:
        assert browser.post(path, '{"text": "hi you"}').status == 401
        assert browser.post(path, '{"text": "hi you"}', signed).error == (402, "not_connected")
    account.connect(user, monthlyUsd=1)
    for n, path in enumerate(paths, 1):
        answer = browser.post(path, '{"text": "hi you"}', signed)
        assert answer.json == {"summary": "hi you", "costUsd": "0.000006"}
        assert spent(user) == n * Decimal("0.000006")


def test_rest_framework(
    recipe: Any, kind: str, account: App, spent: Callable[[str], Decimal]
) -> None:
    from rest_framework.authtoken.models import Token

    recipe("rest", RESOLVE_USER="rest.user_of_token")
    user = new_user("rest")
    token, _ = Token.objects.get_or_create(user=user)
    check_views(Browser(kind), ["/summary"], f"Token {token.key}", str(user.pk), account, spent)


def test_rest_framework_with_default_settings(
    recipe: Any, kind: str, account: App, spent: Callable[[str], Decimal]
) -> None:
    """In a REST framework view, Django's `request.user` is the token's user, too."""
    from rest_framework.authtoken.models import Token

    recipe("rest")
    user = new_user("rest")
    token, _ = Token.objects.get_or_create(user=user)
    account.connect(str(user.pk), monthlyUsd=1)
    browser = Browser(kind)
    assert browser.get("/sign-in/ann").status == 404
    answer = browser.post("/summary", '{"text": "hi"}', {"authorization": f"Token {token.key}"})
    assert answer.status == 200
    assert spent(str(user.pk)) == Decimal("0.000003")


def test_ninja(recipe: Any, kind: str, account: App, spent: Callable[[str], Decimal]) -> None:
    from django.core import signing

    recipe("ninja_api", RESOLVE_USER="ninja_api.user_of_token")
    paths = ["/api/summary", "/api/summary-async"]
    check_views(Browser(kind), paths, f"Bearer {signing.dumps(7)}", "7", account, spent)


def test_anonymous_visitor_is_refused(recipe: Any, kind: str, account: App) -> None:
    module = recipe("login_required")
    browser = Browser(kind)
    answer = browser.get("/haiku")
    assert (answer.status, answer.headers["location"]) == (302, "/accounts/login/?next=/haiku")
    user = new_user("visitor")
    browser.client.force_login(user)
    assert (browser.get("/haiku").status, browser.get("/haiku").json["do"]) == (
        402,
        "connect a budget",
    )
    account.connect(str(user.pk), monthlyUsd=1)
    assert browser.get("/haiku").json == {"haiku": "Write a haiku."}
    with override_settings(
        WATTFARE={
            "SECRET_KEY": account.keys.secret_key,
            "BASE_URL": account.service.url,
            "RESOLVE_USER": module.member_number,
        }
    ):
        assert Browser(kind).post(TOKEN).error == (401, "auth")


def test_streams(recipe: Any, kind: str, account: App, spent: Callable[[str], Decimal]) -> None:
    recipe("streams")
    user = new_user("streams")
    account.connect(str(user.pk), monthlyUsd=1)
    browser = Browser(kind)
    browser.client.force_login(user)
    path = "/async-story" if kind == "async" else "/story"
    answer = browser.get(f"{path}?about=a cat")
    assert (answer.streaming, answer.body) == (True, b"a cat")
    assert spent(str(user.pk)) == Decimal("0.000006")


def test_token_route_alone(
    recipe: Any, kind: str, account: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATTFARE_SECRET_KEY", account.keys.secret_key)
    monkeypatch.setenv("WATTFARE_BASE_URL", account.service.url)
    module = recipe("token_route")
    with module.wf:
        browser = Browser(kind)
        assert browser.post("/wattfare-token").error == (401, "auth")
        browser.client.force_login(new_user("ann"))
        assert browser.post("/wattfare-token").json["token"]


def test_every_recipe_is_tested() -> None:
    names = {path.stem for path in (EXAMPLES / "django_recipes").glob("*.py")}
    tested = {"login_required", "ninja_api", "rest", "streams", "test_summary", "token_route"}
    assert names == tested


def test_tests_of_a_project_pass(recipe: Any) -> None:
    from django.contrib.auth.models import User

    asked: list[Any] = []

    def resolve_user(request: Any) -> Any:
        asked.append(request)
        return request.user.pk

    recipe("django_app", RESOLVE_USER=resolve_user)
    User.objects.all().delete()  # a project's tests start without users
    module = importlib.import_module("test_summary")
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = unittest.TestResult()
    suite.run(result)
    assert (result.testsRun, result.failures, result.errors) == (2, [], [])
    assert len(asked) == 2  # the project's own options still apply


@pytest.mark.long
def test_manage_py_test_passes(tmp_path: Path) -> None:
    """A key that is invalid everywhere passes the checks. The tests use their own service."""
    recipes = str(EXAMPLES / "django_recipes")
    command = [sys.executable, str(EXAMPLES / "django_app.py"), "test", "test_summary"]

    def run(more: dict[str, str]) -> subprocess.CompletedProcess[str]:
        env = environment(more)
        env["PYTHONPATH"] = os.pathsep.join([recipes, env["PYTHONPATH"]])
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    refused = run({})
    assert "wattfare.E001" in refused.stderr
    assert "sk_test_" in refused.stderr
    done = run({"WATTFARE_SECRET_KEY": "sk_test_unused"})
    assert "Ran 2 tests" in done.stderr
    assert done.returncode == 0, done.stderr
