"""An app's own CORS settings also apply to Wattfare's paths."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from corsheaders.signals import check_request_enabled
from django.core.asgi import get_asgi_application
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings
from django.urls import path as django_path
from fastapi import FastAPI
from flask import Flask
from flask_cors import CORS
from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.testing import TestClient as LitestarClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient
from support.django_project import MIDDLEWARE
from support.fake_wattfare import FakeWattfare
from support.rules import INFERENCE, JSON, MODELS, STATUS, TOKEN, ask
from wattfare_django import session_view as django_session_view
from wattfare_fastapi import add_wattfare as add_to_fastapi
from wattfare_flask import WattfareMiddleware as FlaskWattfare
from wattfare_litestar import WattfarePlugin
from wattfare_starlette import WattfareMiddleware, add_wattfare

from wattfare_mw import Wattfare

pytestmark = pytest.mark.usefixtures("project")
OURS = "https://app.example.com"
STRANGER = "https://evil.example.org"


def user(_request: Any) -> str:
    return "u1"


Build = Callable[[dict[str, Any], dict[str, Any]], Any]


def cors_first(kind: Any, add: Any) -> Build:
    def build(cors: dict[str, Any], options: dict[str, Any]) -> Any:
        app = kind()
        app.add_middleware(CORSMiddleware, **cors)
        add(app, resolve_user=user, **options)
        return app

    return build


def cors_last(kind: Any, add: Any) -> Build:
    def build(cors: dict[str, Any], options: dict[str, Any]) -> Any:
        app = kind()
        add(app, resolve_user=user, **options)
        app.add_middleware(CORSMiddleware, **cors)
        return app

    return build


def outermost(app: Any, **options: Any) -> None:
    app.add_middleware(WattfareMiddleware, **options)


def around(cors: dict[str, Any], options: dict[str, Any]) -> Any:
    app = Starlette(middleware=[Middleware(CORSMiddleware, **cors)])
    return WattfareMiddleware(app, resolve_user=user, **options)


def around_cors(cors: dict[str, Any], options: dict[str, Any]) -> Any:
    return WattfareMiddleware(CORSMiddleware(Starlette(), **cors), resolve_user=user, **options)


def litestar(cors: dict[str, Any], options: dict[str, Any]) -> Any:
    return Litestar(
        [],
        cors_config=CORSConfig(**{"allow_origins": [], **cors}),
        plugins=[WattfarePlugin(resolve_user=user, **options)],
        logging_config=None,
    )


def flask_cors(cors: dict[str, Any]) -> dict[str, Any]:
    """The equivalent Flask-CORS settings."""
    origins = [*cors.get("allow_origins", ()), *filter(None, [cors.get("allow_origin_regex")])]
    return {"origins": origins, "supports_credentials": cors.get("allow_credentials", False)}


def flask_cors_first(cors: dict[str, Any], options: dict[str, Any]) -> Any:
    app = Flask(__name__)
    CORS(app, **flask_cors(cors))
    FlaskWattfare(app, resolve_user=user, **options)
    return app


def flask_cors_last(cors: dict[str, Any], options: dict[str, Any]) -> Any:
    app = Flask(__name__)
    FlaskWattfare(app, resolve_user=user, **options)
    CORS(app, resources={"/api/*": flask_cors(cors), "/*": {"origins": [STRANGER]}})
    return app


@dataclass
class DjangoProject:
    settings: dict[str, Any]
    is_async: bool


CORS_HEADERS = "corsheaders.middleware.CorsMiddleware"


def django(middleware: list[str], *, is_async: bool) -> Build:
    def build(cors: dict[str, Any], options: dict[str, Any]) -> Any:
        origins = cors.get("allow_origins", [])
        settings = {
            "MIDDLEWARE": middleware,
            "WATTFARE": {name.upper(): value for name, value in options.items()}
            | {"RESOLVE_USER": user},
            "CORS_ALLOWED_ORIGINS": [origin for origin in origins if origin != "*"],
            "CORS_ALLOW_ALL_ORIGINS": "*" in origins,
            "CORS_ALLOWED_ORIGIN_REGEXES": [*filter(None, [cors.get("allow_origin_regex")])],
            "CORS_ALLOW_CREDENTIALS": cors.get("allow_credentials", False),
        }
        return DjangoProject(settings, is_async)

    return build


BUILDS: dict[str, Build] = {
    "django, cors first": django([CORS_HEADERS, *MIDDLEWARE], is_async=False),
    "django, cors last": django([*MIDDLEWARE, CORS_HEADERS], is_async=True),
    "async django, cors first": django([CORS_HEADERS, *MIDDLEWARE], is_async=True),
    "fastapi, cors first": cors_first(FastAPI, add_to_fastapi),
    "fastapi, cors last": cors_last(FastAPI, add_to_fastapi),
    "starlette, cors first": cors_first(Starlette, add_wattfare),
    "starlette, cors last": cors_last(Starlette, add_wattfare),
    "add_middleware, cors first": cors_first(Starlette, outermost),
    "add_middleware, cors last": cors_last(FastAPI, outermost),
    "around the app": around,
    "around CORSMiddleware": around_cors,
    "litestar": litestar,
    "flask, cors first": flask_cors_first,
    "flask, cors last": flask_cors_last,
}
ANY_METHOD = {"allow_methods": ["*"], "allow_headers": ["*"]}


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> Build:
    return BUILDS[request.param]


@contextmanager
def served(app: Any) -> Iterator[Any]:
    if isinstance(app, DjangoProject):
        with override_settings(**app.settings):
            if app.is_async:  # Django has no lifespan
                yield TestClient(get_asgi_application())
            else:
                with over_wsgi(WSGIHandler()) as client:
                    yield client
        return
    if isinstance(app, Flask):
        with over_wsgi(app) as client:
            yield client
        return
    client = LitestarClient(app) if isinstance(app, Litestar) else TestClient(app)
    with client:
        yield client


def over_wsgi(app: Any) -> httpx.Client:
    return httpx.Client(transport=httpx.WSGITransport(app), base_url="http://testserver")


def page(origin: str, *, cookie: bool = False, **more: str) -> dict[str, str]:
    """The headers that a browser sends for a page of another site."""
    headers = {"origin": origin, "sec-fetch-site": "cross-site", **more}
    return {**headers, "cookie": "session=1"} if cookie else headers


def preflight(client: Any, path: str, origin: str) -> Any:
    headers = page(
        origin,
        **{
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        },
    )
    return client.options(path, headers=headers)


def cors_headers(answer: Any) -> list[tuple[str, str]]:
    return [
        (name.lower(), value)
        for name, value in answer.headers.multi_items()
        if name.lower() in ("access-control-allow-origin", "access-control-allow-credentials")
    ]


@pytest.mark.parametrize(
    "allow", [{"allow_origins": [OURS]}, {"allow_origin_regex": r"https://.*\.example\.com"}]
)
def test_origin_that_the_app_allows_is_admitted(
    allow: dict[str, Any], build: Build, at_fake: dict[str, Any]
) -> None:
    app = build({**allow, **ANY_METHOD, "allow_credentials": True}, at_fake)
    with served(app) as client:
        for method, path in (("POST", TOKEN), ("GET", STATUS), ("DELETE", STATUS), ("GET", MODELS)):
            answer = client.request(method, path, headers=page(OURS, cookie=True))
            assert answer.status_code < 300, (path, answer.text)
            assert sorted(cors_headers(answer)) == [
                ("access-control-allow-credentials", "true"),
                ("access-control-allow-origin", OURS),
            ]
        asked = client.post(INFERENCE, content=ask(), headers=JSON | page(OURS, cookie=True))
        assert asked.status_code == 200
        for path in (TOKEN, INFERENCE):
            first = preflight(client, path, OURS)
            assert first.status_code in (200, 204)
            assert dict(cors_headers(first))["access-control-allow-origin"] == OURS
            assert dict(cors_headers(first))["access-control-allow-credentials"] == "true"
            assert "POST" in first.headers["access-control-allow-methods"]
            assert "content-type" in first.headers["access-control-allow-headers"].lower()


def test_unknown_origin_is_refused(
    build: Build, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    app = build({"allow_origins": [OURS], **ANY_METHOD, "allow_credentials": True}, at_fake)
    with served(app) as client:
        for origin in (STRANGER, "null", f"{OURS}.evil.example"):
            for cookie in (True, False):
                answer = client.post(TOKEN, headers=page(origin, cookie=cookie))
                assert answer.status_code == 403
            first = preflight(client, TOKEN, origin)
            # Litestar answers any preflight. The browser checks this header.
            assert "access-control-allow-origin" not in first.headers
        assert client.post(TOKEN, headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert len(fake.exchanges) == 1


WILDCARDS: dict[str, dict[str, Any]] = {
    "*": {"allow_origins": ["*"]},
    "any com": {"allow_origin_regex": r".*\.com|.*\.org"},
    "* and one": {"allow_origins": ["*", OURS]},
    "any": {"allow_origin_regex": ".*"},
    "any site": {"allow_origin_regex": r"https?://.*"},
}
#: One app for each library that has the settings, and each app with a list and with a pattern.
READERS = ("starlette, cors first", "litestar", "flask, cors first", "django, cors first")
WILD_APPS = [
    pytest.param(build, allow, id=f"{name}-{build}")
    for name, allow in WILDCARDS.items()
    for build in (BUILDS if name in ("*", "any com") else READERS)
]


@pytest.mark.parametrize("credentials", [True, False])
@pytest.mark.parametrize(("build", "allow"), WILD_APPS, indirect=["build"])
def test_wildcard_admits_no_origin(
    allow: dict[str, Any],
    credentials: bool,
    build: Build,
    at_fake: dict[str, Any],
    fake: FakeWattfare,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = build({**allow, **ANY_METHOD, "allow_credentials": credentials}, at_fake)
    with served(app) as client:
        for origin in (STRANGER, OURS):
            for method, path in (("POST", TOKEN), ("DELETE", STATUS)):
                answer = client.request(method, path, headers=page(origin, cookie=True))
                assert answer.status_code == 403
            asked = client.post(INFERENCE, content=ask(), headers=JSON | page(origin, cookie=True))
            assert asked.status_code == 403
            for path in (STATUS, MODELS):
                answer = client.get(path, headers=page(origin, cookie=True))
                readable = "access-control-allow-origin" in answer.headers
                assert answer.status_code == 403 or not readable
        records = [r for r in caplog.records if r.name == "wattfare_mw"]
        warnings = [r for r in records if r.levelno == logging.WARNING]
        assert [r for r in warnings if "paths ignore them" in r.message] == warnings
        assert len(warnings) == 1
    assert all(exchange.method == "GET" for exchange in fake.exchanges)


def test_without_credentials_only_cookieless_requests_are_admitted(
    build: Build, at_fake: dict[str, Any]
) -> None:
    """From a page that signs in with a bearer token, for example."""
    app = build({"allow_origins": [OURS], **ANY_METHOD}, at_fake)
    with served(app) as client:
        assert client.post(TOKEN, headers=page(OURS, cookie=True)).status_code == 403
        answer = client.post(TOKEN, headers=page(OURS, authorization="Bearer x"))
        assert answer.status_code == 200
        assert cors_headers(answer) == [("access-control-allow-origin", OURS)]


def test_allowed_origins_apply_in_addition(build: Build, at_fake: dict[str, Any]) -> None:
    """If the app's own middleware is outside, it must allow them, too."""
    other = "https://other.example.com"
    app = build(
        {"allow_origins": [OURS, other], **ANY_METHOD, "allow_credentials": True},
        {**at_fake, "allowed_origins": [other]},
    )
    with served(app) as client:
        for origin in (OURS, other):
            answer = client.post(TOKEN, headers=page(origin, cookie=True))
            assert answer.status_code == 200
            assert sorted(cors_headers(answer)) == [
                ("access-control-allow-credentials", "true"),
                ("access-control-allow-origin", origin),
            ]
        assert client.post(TOKEN, headers=page(STRANGER)).status_code == 403


def test_app_without_cors_admits_no_other_origin(at_fake: dict[str, Any]) -> None:
    for app in (Starlette(), FastAPI()):
        add_wattfare(app, resolve_user=user, **at_fake)
        with TestClient(app) as client:
            answer = client.post(TOKEN, headers=page(OURS))
            assert answer.status_code == 403
            assert "vary" not in answer.headers


@pytest.mark.parametrize("is_async", [False, True])
def test_signal_of_django_cors_headers_admits_no_origin(
    is_async: bool, at_fake: dict[str, Any], fake: FakeWattfare
) -> None:
    def allow(sender: Any, **_more: Any) -> bool:
        return True

    build = django([CORS_HEADERS, *MIDDLEWARE], is_async=is_async)
    check_request_enabled.connect(allow)
    try:
        with served(build({"allow_credentials": True}, at_fake)) as client:
            for method, path in (("POST", TOKEN), ("GET", STATUS)):
                answer = client.request(method, path, headers=page(STRANGER, cookie=True))
                assert answer.status_code == 403
    finally:
        check_request_enabled.disconnect(allow)
    assert not fake.exchanges


def test_django_cors_settings_apply_only_to_their_paths(at_fake: dict[str, Any]) -> None:
    app = django([CORS_HEADERS, *MIDDLEWARE], is_async=False)({"allow_origins": [OURS]}, at_fake)
    app.settings["CORS_URLS_REGEX"] = "^/api/wattfare/"
    with served(app) as client:
        assert client.get(STATUS, headers=page(OURS)).status_code == 200
        assert client.post(TOKEN, headers=page(OURS)).status_code == 403


@pytest.mark.parametrize("wild", [False, True])
def test_django_cors_settings_apply_to_a_session_view(wild: bool, at_fake: dict[str, Any]) -> None:
    app = django([*MIDDLEWARE, CORS_HEADERS], is_async=False)(
        {"allow_origins": [OURS, "*"] if wild else [OURS], "allow_credentials": True}, at_fake
    )
    with Wattfare(**at_fake) as wf:
        # The view reads the settings when the project starts.
        with override_settings(**app.settings):
            app.settings["ROOT_URLCONF"] = (django_path("token", django_session_view(wf, user)),)
        with served(app) as client:
            answer = client.post("/token", headers=page(OURS, cookie=True))
            assert answer.status_code == (403 if wild else 200)
            assert client.post("/token", headers=page(STRANGER)).status_code == 403
