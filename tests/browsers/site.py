"""A service and a live app in front of it, as two real servers that a person visits."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flask
import httpx
from support.http_client import fetch
from support.servers import werkzeug_server
from support.service import Service, bearer, run_service

from wattfare_mw.cli.demo_chat import CLIENT_PATH, COOKIE, Chat, flask_app
from wattfare_mw.service import AppKeys, create_keys
from wattfare_mw.service.ledger import apps
from wattfare_mw.service.ledger.databases import change_database
from wattfare_mw.transport import Secret

#: A page with just the four calls, each behind a button. Its app sets no policy.
LAB = """<!doctype html><html lang="en"><meta charset="utf-8"><title>The lab</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<main><h1>The lab</h1>
<button data-do="connect">Connect</button>
<button data-do="redirect">Connect by redirect</button>
<button data-do="status">Status</button>
<button data-do="disconnect">Disconnect</button>
<button data-do="grant">Ask for a grant</button>
<output>-</output></main>
<script type="module">
import {{ createWattfare }} from "{client}";
const output = document.querySelector("output");
const show = (what) => {{ output.textContent = JSON.stringify(what); }};
const wattfare = window.wattfare = createWattfare({{
  publishableKey: "{key}", session: "/api/wattfare-token", baseURL: "{service}",
}});
const calls = {{
  connect: () => wattfare.connect(),
  redirect: () => wattfare.connect({{ mode: "redirect" }}),
  status: () => wattfare.status(),
  disconnect: () => wattfare.disconnect(),
  grant: () => wattfare.requestGrant({{ requests: 2, maxUsd: 0.001 }}),
}};
for (const button of document.querySelectorAll("button")) {{
  button.addEventListener("click", () => {{
    show("…");
    calls[button.dataset.do]().then(
      (value) => show(value ?? "done"),
      (error) => show({{ error: error.code, message: error.message }}));
  }});
}}
show("ready");
</script></html>"""


@dataclass
class Site:
    """A running app and its service.

    Attributes:
        app: the URL of the app.
        service: the URL under which people open the service.
        running: the service's process.
    """

    app: str
    service: str
    keys: AppKeys
    running: Service

    @property
    def lab(self) -> str:
        """The page with the four calls."""
        return f"{self.app}/lab"

    @property
    def return_url(self) -> str:
        """The page to which an approval returns."""
        return f"{self.app}{CLIENT_PATH.rpartition('/')[0]}/wattfare-return"

    def api(self, method: str, path: str, credential: str, **more: Any) -> httpx.Response:
        """A plain call to the service's API."""
        headers = {**bearer(credential), **more.pop("headers", {})}
        return fetch(f"{self.running.api}{path}", method, headers=headers, **more)

    def status(self, user: str) -> dict[str, Any]:
        """The ConnectionStatus of an app user, as the app's backend sees it."""
        answer = self.api("GET", f"/status?appUserId={user}", self.keys.secret_key)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def token(self, user: str, **limit: Any) -> str:
        """A session token of an app user."""
        body = {"appUserId": user, **({"requestLimit": limit} if limit else {})}
        answer = self.api("POST", "/sessions", self.keys.secret_key, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["token"]


@contextmanager
def run_site(folder: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Site]:
    """A service with these options, and the Flask chat app with the page `/lab`."""
    with run_service(folder, *options, env=env) as running:
        keys = create_keys(running.database, "Chat", "live")
        with run_app(running, keys) as app:
            yield Site(app, on_localhost(running.url), keys, running)


@contextmanager
def run_app(running: Service, keys: AppKeys) -> Iterator[str]:
    """Runs the chat app with these keys. Its URL is registered as its origin."""
    service = on_localhost(running.url)
    app = flask_app(Chat(keys.publishable_key, Secret(keys.secret_key), service))
    lab = LAB.format(client=CLIENT_PATH, key=keys.publishable_key, service=service)

    @app.get("/lab")
    def show_lab() -> flask.Response:
        answer = flask.make_response(lab)
        if COOKIE not in flask.request.cookies:
            answer.set_cookie(COOKIE, secrets.token_hex(8), httponly=True, samesite="lax")
        return answer

    with werkzeug_server(app) as address:
        url = f"http://localhost:{address[1]}"
        change_database(running.database, lambda sql: apps.add_origins(sql, keys.app_id, [url]))
        yield url


def on_localhost(url: str) -> str:
    """The same URL with the host name that passkeys need."""
    return url.replace("//127.0.0.1:", "//localhost:")
