"""Unserved paths of OpenAI's API say what to use instead. A model is found by its id. An app's own
routes at the same paths win."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.drivers import asgi_app
from support.http_client import fetch, http_client
from support.servers import uvicorn_server, werkzeug_server
from support.service import App, bearer, run_service
from support.upstream import run_upstream

from wattfare_mw import WattfareMiddleware
from wattfare_mw.model_entry import find_entry

SLASHES = "vendor/with/slashes:free"
MODELS = [
    {"id": "fake/model", "pricing": {"prompt": "1", "completion": "1"}, "name": "Fake"},
    {"id": SLASHES, "context_length": 5},
    {"id": "plain"},
    {"id": "né/ö"},
]
#: Unserved paths of OpenAI's API, and the text that their refusal contains.
UNSERVED = {
    "POST responses": "openai.chat(…)",
    "GET responses/resp_1": "chat/completions",
    "POST embeddings": "Only chat completions are supported",
    "POST completions": "`messages`",
    "POST images/generations": "Only chat completions are supported",
    "POST images/edits": "Only chat completions are supported",
    "POST audio/speech": "Only chat completions are supported",
    "POST audio/transcriptions": "Only chat completions are supported",
    "POST moderations": "Only chat completions are supported",
    "GET files": "Only chat completions are supported",
    "POST files": "Only chat completions are supported",
    "DELETE files/file-1": "Only chat completions are supported",
    "POST batches": "Only chat completions are supported",
    "GET chat/completions/chatcmpl-1": "not stored",
    "POST messages": "chat/completions",
    "POST chat/completions/": "without the slash",
    "POST v1/chat/completions": "the base URL of an OpenAI client is",
    "GET v1/models": "the base URL of an OpenAI client is",
    "POST v1/messages": "`messages`",
    "GET generation": "`usage.cost`",
    "GET credits": "status",
}
#: The message for paths without a replacement.
WITHOUT_A_PATH = ("not stored", "`usage.cost`", "status")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with run_upstream() as upstream:
        upstream.models = {"data": MODELS}
        path = tmp_path_factory.mktemp("unserved")
        with run_service(path, "--upstream", upstream.url) as service, service.app() as app:
            app.connect()
            yield app


def error_in(answer: httpx.Response, status: int = 404) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] == "invalid_request"
    return error["message"]


# -- the service


@pytest.mark.parametrize("path", UNSERVED)
def test_service_says_what_to_use_instead(app: App, path: str) -> None:
    method, _, tail = path.partition(" ")
    message = error_in(app.http.request(method, f"/{tail}", headers=app.auth))
    assert UNSERVED[path] in message
    assert f"`/{tail}` is not supported." in message


def test_other_unknown_paths_of_the_service_are_not_found(app: App) -> None:
    http = http_client(base_url=app.service.url)
    with http:
        for path in ("/api/v1/nothing", "/nothing", "/api/v1/"):
            assert error_in(http.get(path)) == "There is no such path here."
        for path in ("/v1/chat/completions", "/chat/completions", "/v1/responses", "/v1/models"):
            assert "base URL of a client must end with /api/v1" in error_in(http.post(path))


def quoted(model: str) -> list[str]:
    """Returns the ways to write a model's id in a path."""
    from urllib.parse import quote

    return [quote(model, safe="/"), quote(model, safe="")]


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry["id"])
def test_service_returns_one_model(app: App, entry: dict[str, Any]) -> None:
    for path in quoted(entry["id"]):
        answer = app.http.get(f"/models/{path}", headers=app.auth)
        assert (answer.status_code, answer.json()) == (200, entry)
        assert app.http.head(f"/models/{path}", headers=app.auth).status_code == 200


@pytest.mark.parametrize("model", ["vendor", "fake", "fake/model2", "x", "%ff", "a" * 999])
def test_unknown_model_is_not_found(app: App, model: str) -> None:
    assert "There is no model" in error_in(app.http.get(f"/models/{model}", headers=app.auth))


def test_model_route_requires_an_app_key(app: App) -> None:
    for headers in ({}, bearer("sk_test_x_y")):
        assert app.http.get("/models/plain", headers=headers).status_code == 401
    assert app.http.post("/models/plain", headers=app.auth).status_code == 405


def test_openai_package_reads_the_advice(app: App) -> None:
    openai = pytest.importorskip("openai")
    with app.openai() as client:
        assert client.models.retrieve(SLASHES).id == SLASHES
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("no/such")
        with pytest.raises(openai.NotFoundError, match=r"openai\.chat"):
            client.responses.create(model="fake/model", input="hi")
        with pytest.raises(openai.NotFoundError, match="Only chat completions are supported"):
            client.embeddings.create(model="fake/model", input="hi")


# -- the middleware


Serve = Callable[[], AbstractContextManager[str]]


def _options(app: App) -> dict[str, Any]:
    return {
        "resolve_user": lambda _request: "u1",
        "secret_key": app.keys.secret_key,
        "base_url": app.service.url,
    }


@contextmanager
def _served(server: Any, wrapped: Any) -> Iterator[str]:
    with server(wrapped) as (host, port):
        yield f"http://{host}:{port}"


def _starlette_routes() -> Any:
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    async def own(request: Any) -> Any:
        return PlainTextResponse(f"own {request.url.path}")

    async def missing(_request: Any) -> Any:
        raise HTTPException(404, "mine")

    async def missing_in_json(_request: Any) -> Any:
        return JSONResponse({"mine": True}, 404)

    return [
        Route("/api/wattfare/embeddings", own, methods=["POST"]),
        Route("/api/wattfare/models/own", own),
        Route("/api/wattfare/files", missing),
        Route("/api/wattfare/models/json", missing_in_json),
        Mount("/", StaticFiles(directory=Path(__file__).parent)),
    ]


def starlette(app: App) -> Any:
    from starlette.applications import Starlette
    from wattfare_starlette import add_wattfare

    inner = Starlette(routes=_starlette_routes())
    add_wattfare(inner, **_options(app))
    return _served(uvicorn_server, inner)


def around_starlette(app: App) -> Any:
    from starlette.applications import Starlette

    inner = Starlette(routes=_starlette_routes())
    return _served(uvicorn_server, WattfareMiddleware(inner, **_options(app)))


def fastapi(app: App) -> Any:
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import JSONResponse, PlainTextResponse
    from wattfare_starlette import add_wattfare

    inner = FastAPI()

    @inner.post("/api/wattfare/embeddings", response_class=PlainTextResponse)
    def embeddings() -> str:
        return "own /api/wattfare/embeddings"

    @inner.get("/api/wattfare/models/own", response_class=PlainTextResponse)
    def model() -> str:
        return "own /api/wattfare/models/own"

    @inner.get("/api/wattfare/files")
    def files() -> None:
        raise HTTPException(404, "mine")

    @inner.get("/api/wattfare/models/json")
    def missing() -> Any:
        return JSONResponse({"mine": True}, 404)

    add_wattfare(inner, **_options(app))
    return _served(uvicorn_server, inner)


def litestar(app: App) -> Any:
    from litestar import Litestar, MediaType, Response, get, post
    from litestar.exceptions import NotFoundException
    from wattfare_litestar import WattfarePlugin

    @post("/api/wattfare/embeddings", media_type=MediaType.TEXT, status_code=200)
    async def embeddings() -> str:
        return "own /api/wattfare/embeddings"

    @get("/api/wattfare/models/own", media_type=MediaType.TEXT)
    async def model() -> str:
        return "own /api/wattfare/models/own"

    @get("/api/wattfare/files")
    async def files() -> None:
        raise NotFoundException("mine")

    @get("/api/wattfare/models/json")
    async def missing() -> Any:
        return Response({"mine": True}, status_code=404)

    plugin = WattfarePlugin(**_options(app))
    return _served(uvicorn_server, Litestar([embeddings, model, files, missing], plugins=[plugin]))


def _flask_app() -> Any:
    import flask

    inner = flask.Flask("inner")

    @inner.post("/api/wattfare/embeddings")
    def embeddings() -> str:
        return "own /api/wattfare/embeddings"

    @inner.get("/api/wattfare/models/own")
    def model() -> str:
        return "own /api/wattfare/models/own"

    @inner.get("/api/wattfare/files")
    def files() -> None:
        flask.abort(404, "mine")

    @inner.get("/api/wattfare/models/json")
    def missing() -> Any:
        return {"mine": True}, 404

    return inner


def flask(app: App) -> Any:
    from wattfare_flask import WattfareMiddleware as FlaskMiddleware

    inner = _flask_app()
    FlaskMiddleware(inner, **_options(app))
    return _served(werkzeug_server, inner)


def around_flask(app: App) -> Any:
    return _served(werkzeug_server, WattfareMiddleware(_flask_app(), **_options(app)))


async def _asgi_without_framework(scope: Any, receive: Any, send: Any) -> None:
    """Answers 404: text for unknown paths, JSON for its own."""
    if scope["type"] != "http":
        await asgi_app(scope, receive, send)
        return
    status, kind, body = _plain(scope["path"])
    headers = [(b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode(), "more_body": False})


def _wsgi_without_framework(environ: Any, start_response: Any) -> Iterator[bytes]:
    """The same as a generator, which starts the response when it is read."""
    status, kind, body = _plain(environ["PATH_INFO"])
    start_response(f"{status} X", [("Content-Type", kind)])
    yield body.encode()[:3]
    yield body.encode()[3:]


def plain_asgi(app: App) -> Any:
    return _served(uvicorn_server, WattfareMiddleware(_asgi_without_framework, **_options(app)))


def plain_wsgi(app: App) -> Any:
    return _served(werkzeug_server, WattfareMiddleware(_wsgi_without_framework, **_options(app)))


def _plain(path: str) -> tuple[int, str, str]:
    if path in ("/api/wattfare/embeddings", "/api/wattfare/models/own"):
        return 200, "text/plain", f"own {path}"
    if path in ("/api/wattfare/files", "/api/wattfare/models/json"):
        return 404, "application/json; charset=utf-8", '{"mine": true}'
    return 404, "text/plain", "Not Found"


KINDS = [
    *(starlette, around_starlette, fastapi, litestar),
    *(flask, around_flask, plain_asgi, plain_wsgi),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def http(request: pytest.FixtureRequest, app: App) -> Iterator[httpx.Client]:
    """A client of the middleware around an app with its own routes."""
    with request.param(app) as url:
        client = http_client(base_url=f"{url}/api/wattfare")
        with client:
            yield client


def test_middleware_says_what_to_use_instead(http: httpx.Client) -> None:
    for path, words in UNSERVED.items():
        method, _, tail = path.partition(" ")
        if tail in ("embeddings", "files") or (tail, method) == ("files", "GET"):
            continue  # the app's own route
        answer = http.request(method, f"/{tail}", content=b'{"model": "x"}')
        if tail.endswith("/") and answer.status_code != 404:
            continue  # Litestar treats it as the path without the slash
        message = error_in(answer)
        assert words in message
        assert "/api/wattfare/" in message or words in WITHOUT_A_PATH
        assert answer.headers["x-request-id"]


def test_middleware_returns_one_model(http: httpx.Client) -> None:
    for entry in MODELS:
        for path in quoted(entry["id"]):
            answer = http.get(f"/models/{path}")
            assert (answer.status_code, answer.json()) == (200, entry), path
    assert "There is no model" in error_in(http.get("/models/no/such"))
    assert http.head("/models/plain").content == b""
    assert http.post("/models/plain").status_code == 405


def test_routes_of_the_app_win(http: httpx.Client) -> None:
    assert http.post("/embeddings").text == "own /api/wattfare/embeddings"
    assert http.get("/models/own").text == "own /api/wattfare/models/own"
    for path in ("/files", "/models/json"):
        answer = http.get(path)
        assert answer.status_code == 404
        assert "mine" in answer.text


def test_paths_outside_of_openais_api_go_to_the_app(http: httpx.Client) -> None:
    for path in ("/nothing", "/chat", "/response"):
        answer = http.get(path)
        assert answer.status_code in (404, 405)
        assert '"code":"invalid_request"' not in answer.text


def test_app_that_allows_some_models_hides_the_others(app: App) -> None:
    options = {**_options(app), "models": ["vendor/*"]}
    wrapped = WattfareMiddleware(_asgi_without_framework, **options)
    with (
        _served(uvicorn_server, wrapped) as url,
        http_client() as http,
    ):
        base = f"{url}/api/wattfare/models"
        assert http.get(f"{base}/{SLASHES}").json()["id"] == SLASHES
        assert "There is no model" in error_in(http.get(f"{base}/plain"))


def test_model_route_requires_a_user(app: App) -> None:
    options = {**_options(app), "resolve_user": lambda _request: None}
    for server, inner in (
        (uvicorn_server, _asgi_without_framework),
        (werkzeug_server, _wsgi_without_framework),
    ):
        with _served(server, WattfareMiddleware(inner, **options)) as url:
            answer = fetch(f"{url}/api/wattfare/models/plain")
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "auth"


def test_other_inference_path_gives_no_advice(app: App) -> None:
    """If the path does not end like OpenAI's, an OpenAI client cannot use it."""
    options = {**_options(app), "inference_path": "/ai"}
    assert WattfareMiddleware(asgi_app, interface="asgi", **options)._gate.below("/files") is None
    root = {**_options(app), "inference_path": "/chat/completions"}
    gate = WattfareMiddleware(asgi_app, interface="asgi", **root)._gate
    assert gate.below("/files") is not None
    assert gate.below("/file") is None
    assert gate.below("/models/") is None


def test_litestar_app_keeps_its_own_not_found_page(app: App) -> None:
    from litestar import Litestar, MediaType, Response, get
    from litestar.exceptions import HTTPException
    from wattfare_litestar import WattfarePlugin

    def page(_request: Any, error: HTTPException) -> Any:
        return Response("own page", media_type=MediaType.TEXT, status_code=error.status_code)

    @get("/")
    async def home() -> None: ...

    def get_text(handlers: Any, path: str) -> str:
        plugin = WattfarePlugin(**_options(app))
        inner = Litestar([home], plugins=[plugin], exception_handlers=handlers)
        with _served(uvicorn_server, inner) as url:
            return fetch(f"{url}{path}").text

    for kind in (HTTPException, Exception, 404):
        assert get_text({kind: page}, "/nothing") == "own page"
    assert "is not supported" in get_text({HTTPException: page}, "/api/wattfare/files")
    # The app answers each 404 itself.
    assert get_text({404: page}, "/api/wattfare/files") == "own page"


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ({"data": [{"id": "a"}, {"id": "b/c", "x": 1}]}, {"id": "b/c", "x": 1}),
        ({"data": [{"id": 5}, "b/c", None, {"x": "b/c"}, {"name": "b/c", "id": "z"}]}, None),
        ({"data": []}, None),
    ],
)
def test_find_entry_reads_one_model_of_a_list(listing: Any, found: Any) -> None:
    entry = find_entry(json.dumps(listing).encode(), "b/c")
    assert (None if entry is None else json.loads(entry)) == found


def test_find_entry_reads_escaped_ids() -> None:
    assert find_entry(b'{"data": [{"id": "b\\/\\u0063"}]}', "b/c") is not None
    assert find_entry('{"data": [{"id": "né"}]}'.encode(), "né") is not None
