"""The routes over real HTTP: who may use them, with which input, and how every error looks."""

from __future__ import annotations

import json
import socket
from urllib.parse import quote, urlsplit

import pytest
from support.service import App, Service, bearer, chat_body, eventually

NOT_CONNECTED = {
    "connected": False,
    "limits": None,
    "usage": {"monthlyUsd": 0},
    "remainingUsd": 0,
}


def refused(answer, status: int, code: str) -> str:
    """Checks that the answer is this error in the protocol's JSON. Returns its message."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    of_budget = {"neededUsd", "remainingUsd", "limitedBy", "resetsAt", "manageUrl"}
    assert set(body["error"]) - of_budget == {"code", "message"}
    assert body["error"]["code"] == code
    return body["error"]["message"]


def test_connection_from_approval_to_revocation(app: App) -> None:
    assert app.status() == NOT_CONNECTED
    refused(app.chat(), 402, "not_connected")
    token = app.token(monthlyUsd=20)
    auth = bearer(token)
    assert app.http.get("/connections", headers=auth).json() == NOT_CONNECTED
    connected = {
        "connected": True,
        "limits": {"monthlyUsd": 20},
        "usage": {"monthlyUsd": 0},
        "remainingUsd": 20,
    }
    answer = app.http.post("/connections", headers=auth)
    assert answer.status_code == 200
    assert answer.json() == app.http.get("/connections", headers=auth).json() == connected
    assert app.status() == connected
    assert app.chat().status_code == 200
    assert app.status()["remainingUsd"] == 19.999991
    answer = app.http.delete("/connections", headers=auth)
    assert (answer.status_code, answer.content) == (204, b"")
    assert app.http.delete("/connections", headers=auth).status_code == 204
    assert app.status() == {**NOT_CONNECTED, "usage": {"monthlyUsd": 0.000009}}
    refused(app.chat(), 402, "not_connected")
    # Connecting again does not reset the spending.
    app.connect(monthlyUsd=0.000009)
    refused(app.chat(), 402, "budget_exceeded")


@pytest.mark.parametrize(
    ("limit", "asked", "cap"),
    [
        ({}, {}, None),
        ({"monthlyUsd": 5}, {}, 5),
        ({"monthlyUsd": None}, {}, None),
        ({"monthlyUsd": 5}, {"monthlyUsd": 2.5}, 2.5),
        ({"monthlyUsd": 5}, {"monthlyUsd": None}, 5),
        ({"monthlyUsd": 5}, {"monthlyUsd": 50}, 5),
        ({"monthlyUsd": 0}, {"monthlyUsd": 50}, 0),
        ({"monthlyUsd": None}, {"monthlyUsd": 50}, 50),
        ({}, {"monthlyUsd": None}, None),
        ({"monthlyUsd": 5}, {"monthlyUsd": 0}, 0),
        ({}, {"monthlyUsd": 0.1}, 0.1),
        ({}, {"monthlyUsd": 10**9}, 10**9),
        ({}, {"monthlyUsd": 1e-10}, 0),
        ({}, {"monthlyUsd": 3, "more": 1}, 3),
    ],
)
def test_approval_sets_the_requested_or_the_default_cap(
    app: App, limit: dict, asked: dict, cap: float
) -> None:
    token = app.token(**limit)
    status = app.http.post("/connections", json=asked, headers=bearer(token)).json()
    assert status["limits"] == {"monthlyUsd": cap}
    assert status["remainingUsd"] == cap


NO_AMOUNTS = ["-1", "1000000000.01", "1e400", "1e999999999", "NaN", "Infinity", '"5"', "true", "[]"]


@pytest.mark.parametrize("amount", NO_AMOUNTS)
def test_invalid_amount_is_refused(app: App, amount: str) -> None:
    json_type = {"content-type": "application/json"}
    body = f'{{"monthlyUsd": {amount}}}'
    auth = bearer(app.token())
    answer = app.http.post("/connections", content=body, headers={**auth, **json_type})
    refused(answer, 400, "invalid_request")
    body = f'{{"appUserId": "u1", "requestLimit": {body}}}'
    answer = app.http.post("/sessions", content=body, headers={**app.auth, **json_type})
    refused(answer, 400, "invalid_request")
    body = f'{{"requests": 1, "maxUsd": {amount}}}'
    auth = bearer(app.keys.publishable_key)
    answer = app.http.post("/grants", content=body, headers={**auth, **json_type})
    refused(answer, 400, "invalid_request")


def test_session_route_returns_a_token(app: App) -> None:
    import time

    answer = app.http.post("/sessions", json={"appUserId": "u1"}, headers=app.auth)
    assert answer.status_code == 200
    assert set(answer.json()) == {"token", "expiresAt"}
    assert 590 <= answer.json()["expiresAt"] - time.time() <= 601
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"u1"',
        b"{",
        b"{}",
        b'{"appUserId": ""}',
        b'{"appUserId": null}',
        b'{"appUserId": 5}',
        b'{"appUserId": "a\\u0000b"}',
        b'{"appUserId": "\\ud800"}',
        b'{"appUserId": "\xff"}',
        b'{"appUserId": "u1", "requestLimit": 20}',
        b'{"appUserId": "u1", "requestLimit": []}',
        json.dumps({"appUserId": "u" * 257}).encode(),
        b"[" * 5000,
    ],
)
def test_session_route_refuses_invalid_bodies(app: App, body: bytes) -> None:
    headers = {**app.auth, "content-type": "application/json"}
    refused(app.http.post("/sessions", content=body, headers=headers), 400, "invalid_request")


@pytest.mark.parametrize(
    "user", ["user 1", "a/b?c=d&e#f", "100%", "%41", "zoë ✨", "x" * 256, "é" * 256, "a,b", "\t"]
)
def test_any_text_can_be_a_user_id(app: App, user: str) -> None:
    app.connect(user)
    header = quote(user, safe="!#$&'()*+,/:;=?@[]-._~")
    answer = app.http.post(
        "/chat/completions", json=chat_body("hi"), headers={**app.auth, "x-wattfare-user": header}
    )
    assert answer.status_code == 200, answer.text
    assert app.status(user)["usage"]["monthlyUsd"] == 0.000003
    assert app.status("someone else") == NOT_CONNECTED


@pytest.mark.parametrize("header", ["", "%", "%4", "%zz", "%ff", "a b", "%00", "u" * 257])
def test_invalid_user_header_is_refused(app: App, header: str) -> None:
    headers = {**app.auth, "x-wattfare-user": header}
    answer = app.http.post("/chat/completions", json=chat_body(), headers=headers)
    refused(answer, 400, "invalid_request")


def test_call_needs_exactly_one_payer(app: App) -> None:
    for headers in (
        [],
        [("x-wattfare-user", "u1"), ("x-wattfare-grant", "gt_x")],
        [("x-wattfare-user", "u1"), ("x-wattfare-user", "u2")],
    ):
        headers = [*app.auth.items(), *headers]
        answer = app.http.post("/chat/completions", json=chat_body(), headers=headers)
        refused(answer, 400, "invalid_request")


@pytest.mark.parametrize(
    "query", ["", "?appUserId=", "?appuserid=u1", "?appUserId=a&appUserId=b", "?appUserId=%ff"]
)
def test_status_route_refuses_invalid_users(app: App, query: str) -> None:
    refused(app.http.get(f"/status{query}", headers=app.auth), 400, "invalid_request")


def test_each_route_accepts_only_its_own_credential(app: App, service: Service) -> None:
    other = service.create_app()
    secret, publishable, token = app.keys.secret_key, app.keys.publishable_key, app.token()
    mixed = secret.rsplit("_", 1)[0] + "_" + other.secret_key.rsplit("_", 1)[1]
    live = secret.replace("sk_test_", "sk_live_")
    wrong = ["x", "sk_test_", "sk_test_a_b", secret[:-1], secret + "0", mixed, live, "gt_x", "pk_x"]
    right = {
        ("POST", "/sessions"): secret,
        ("GET", "/status"): secret,
        ("GET", "/models"): secret,
        ("POST", "/chat/completions"): secret,
        ("POST", "/connections"): token,
        ("GET", "/connections"): token,
        ("DELETE", "/connections"): token,
        ("POST", "/grants"): publishable,
    }
    for (method, path), credential in right.items():
        for bad in [*wrong, *({secret, publishable, token} - {credential})]:
            answer = app.http.request(method, path, headers={"authorization": f"Bearer {bad}"})
            message = refused(answer, 401, "auth")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert secret not in message
        for header in (credential, f"Basic {credential}", f"Bearer{credential}", "Bearer"):
            answer = app.http.request(method, path, headers={"authorization": header})
            refused(answer, 401, "auth")
        refused(app.http.request(method, path), 401, "auth")
        twice = [("authorization", f"Bearer {credential}")] * 2
        refused(app.http.request(method, path, headers=twice), 400, "invalid_request")


def test_apps_cannot_see_each_other(app: App, service: Service) -> None:
    app.connect(monthlyUsd=1)
    other = service.app()
    assert other.status() == NOT_CONNECTED
    refused(other.chat(), 402, "not_connected")
    other.http.delete("/connections", headers=bearer(other.token()))
    assert app.status()["connected"]
    other.close()


def test_live_app_needs_the_approval_of_its_users(service: Service) -> None:
    live = service.app("live")
    assert live.keys.secret_key.startswith("sk_live_")
    page = {"origin": "https://app.example"}
    auth = {**bearer(live.token()), **page}
    answer = live.http.post("/connections", json={}, headers=auth)
    assert "Create an approval with POST /approvals" in refused(answer, 403, "invalid_request")
    assert "access-control-allow-origin" not in answer.headers
    assert live.http.get("/connections", headers=auth).json() == NOT_CONNECTED
    grant_auth = {**bearer(live.keys.publishable_key), **page}
    answer = live.http.post("/grants", json={"requests": 1}, headers=grant_auth)
    assert "Create an approval with POST /approvals" in refused(answer, 403, "invalid_request")
    assert "access-control-allow-origin" not in answer.headers
    live.close()


def test_browsers_may_call_the_public_routes(app: App) -> None:
    page = {"origin": "https://app.example"}
    ask = {**page, "access-control-request-method": "DELETE"}
    for path in ("/connections", "/grants"):
        answer = app.http.options(path, headers=ask)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "DELETE" in answer.headers["access-control-allow-methods"]
        assert "Authorization" in answer.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        refusal = app.http.post(path, headers=page)  # a page must be able to read the error
        assert refusal.status_code == 401
        assert refusal.headers["access-control-allow-origin"] == "*"
    answer = app.http.get("/connections", headers={**page, **bearer(app.token())})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Origin" in answer.headers["vary"]
    for path in ("/sessions", "/status", "/chat/completions", "/models"):
        answer = app.http.options(path, headers=ask)
        refused(answer, 405, "invalid_request")
        assert "access-control-allow-origin" not in answer.headers


def test_unknown_paths_and_methods_are_refused(app: App, service: Service) -> None:
    for path in ("/", "/session", "/status/", "/../x"):
        refused(app.http.get(path, headers=app.auth), 404, "invalid_request")
    allowed = {
        "/sessions": {"POST"},
        "/status": {"GET", "HEAD"},
        "/connections": {"GET", "HEAD", "POST", "DELETE"},
        "/chat/completions": {"POST"},
        "/grants": {"POST"},
    }
    for path, methods in allowed.items():
        answer = app.http.put(path)
        refused(answer, 405, "invalid_request")
        assert set(answer.headers["allow"].split(", ")) == methods


def test_body_must_be_json_of_limited_size(app: App) -> None:
    form = {**app.auth, "content-type": "application/x-www-form-urlencoded"}
    refused(app.http.post("/sessions", content=b"a=b", headers=form), 415, "invalid_request")
    large = {"appUserId": "u1", "x": "x" * 70_000}
    refused(app.http.post("/sessions", json=large, headers=app.auth), 413, "invalid_request")

    def chunked():
        yield b'{"x": "'
        for _ in range(8):
            yield b"x" * 10_000
        yield b'"}'

    headers = {**app.auth, "content-type": "application/json"}
    answer = app.http.post("/sessions", content=chunked(), headers=headers)
    refused(answer, 413, "invalid_request")


def test_body_with_too_large_a_declared_length_is_not_read(app: App, service: Service) -> None:
    where = urlsplit(service.url)
    with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
        head = (
            "POST /api/v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n"
            f"authorization: Bearer {app.keys.secret_key}\r\nx-wattfare-user: u1\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_model_named_twice_is_read_once(app: App) -> None:
    app.connect()
    body = (
        b'{"model": "nothing/here", "messages": [{"role": "user", "content": "a"}], '
        b'"model": "wattfare/echo"}'
    )
    headers = {**app.paid_by("u1"), "content-type": "application/json"}
    answer = app.http.post("/chat/completions", content=body, headers=headers)
    assert answer.json()["model"] == "wattfare/echo"


def test_request_id_is_forwarded(app: App, service: Service) -> None:
    answer = app.http.get("/models", headers={**app.auth, "x-request-id": "my-id.1_2~+/=:"})
    assert answer.headers["x-request-id"] == "my-id.1_2~+/=:"
    eventually(lambda: any("request_id=my-id.1_2~+/=:" in line for line in service.log))
    for bad in ("a b", "x" * 129, "a;b", ""):
        answer = app.http.get("/models", headers={**app.auth, "x-request-id": bad})
        assert answer.headers["x-request-id"] not in ("", bad)
    assert app.http.get("/nothing").headers["x-request-id"]


def test_sessions_are_limited_for_each_user_and_each_app(service: Service) -> None:
    app, other = service.app(), service.app()

    def ask(user: str):
        return app.http.post("/sessions", json={"appUserId": user}, headers=app.auth)

    assert [ask("a").status_code for _ in range(30)] == [200] * 30
    too_many = ask("a")
    refused(too_many, 429, "rate_limited")
    assert 1 <= int(too_many.headers["retry-after"]) <= 60
    assert {ask(f"user {n}").status_code for n in range(90)} == {200}
    too_many = ask("one more")
    assert "this app" in refused(too_many, 429, "rate_limited")
    assert other.token("a")
    app.close()
    other.close()


def test_health(app: App, service: Service) -> None:
    assert app.http.get(f"{service.url}/healthz").json() == {"status": "ok"}


def test_secrets_never_appear(app: App, service: Service, tmp_path) -> None:
    app.connect()
    token = app.token()
    grant_auth = bearer(app.keys.publishable_key)
    grant = app.http.post("/grants", json={"requests": 1}, headers=grant_auth).json()["grantToken"]
    prompt = "a prompt that is never stored"
    answers = [
        app.chat(prompt),
        app.http.get("/nothing", headers=app.auth),
        app.http.post("/sessions", content=b"{", headers=app.auth),
        app.http.get("/connections", headers=app.auth),
        app.http.post(
            "/chat/completions",
            json=chat_body(prompt),
            headers={**app.auth, "x-wattfare-grant": grant},
        ),
    ]
    secrets = [app.keys.secret_key, app.keys.secret_key.rsplit("_", 1)[1], token, grant]
    path = service.database.removeprefix("sqlite:///")
    kept = b""
    for suffix in ("", "-wal"):
        with open(path + suffix, "rb") as file:
            kept += file.read()
    for secret in [*secrets, prompt]:
        assert secret.encode() not in kept
        assert not any(secret in line for line in service.log)
    for secret in secrets:
        assert not any(secret in answer.text + str(answer.headers) for answer in answers)


class TestGrants:
    def grant(self, app: App, **body) -> dict:
        answer = app.http.post("/grants", json=body, headers=bearer(app.keys.publishable_key))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def spend(self, app: App, token: str, text: str = "a b c"):
        headers = {**app.auth, "x-wattfare-grant": token}
        return app.http.post("/chat/completions", json=chat_body(text), headers=headers)

    def test_grant_pays_for_its_requests(self, app: App) -> None:
        grant = self.grant(app, requests=2)
        assert set(grant) == {"grantToken", "expiresAt", "requests"}
        assert grant["requests"] == 2
        assert self.spend(app, grant["grantToken"]).status_code == 200
        assert self.spend(app, grant["grantToken"]).status_code == 200
        refused(self.spend(app, grant["grantToken"]), 402, "grant_invalid")

    def test_grant_pays_up_to_its_cap(self, app: App) -> None:
        grant = self.grant(app, requests=5, maxUsd=0.00001)
        assert self.spend(app, grant["grantToken"]).status_code == 200
        refused(self.spend(app, grant["grantToken"]), 402, "grant_invalid")

    def test_refused_call_does_not_use_up_a_grant(self, app: App) -> None:
        grant = self.grant(app, requests=1, maxUsd=0.00001)
        refused(self.spend(app, grant["grantToken"], "a b c d e"), 402, "grant_invalid")
        assert self.spend(app, grant["grantToken"]).status_code == 200

    def test_grant_belongs_to_one_app(self, app: App, service: Service) -> None:
        grant = self.grant(app, requests=1)
        other = service.app()
        refused(self.spend(other, grant["grantToken"]), 402, "grant_invalid")
        refused(self.spend(app, "gt_unknown"), 402, "grant_invalid")
        other.close()

    @pytest.mark.parametrize(
        "body", [{}, {"requests": 0}, {"requests": 1001}, {"requests": True}, {"requests": 1.5}]
    )
    def test_invalid_grant_request_is_refused(self, app: App, body: dict) -> None:
        auth = bearer(app.keys.publishable_key)
        refused(app.http.post("/grants", json=body, headers=auth), 400, "invalid_request")
