"""From an approval to a connection over real HTTP: the correct way, and each forbidden one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from support.http_client import http_client
from support.people import (
    ORIGIN,
    RETURN_URL,
    Person,
    ask,
    ask_for_grant,
    change,
    connect,
    live_app,
    post,
    redeem,
)
from support.postgres import Cluster
from support.service import App, Service, bearer, chat_body, run_service


def refused(answer: httpx.Response, *statuses: int) -> str:
    """Checks that the answer is this error in the protocol's JSON. Returns its message."""
    assert answer.status_code in statuses, answer.text
    error = answer.json()["error"]
    assert error["code"] == ("auth" if answer.status_code == 401 else "invalid_request")
    return error["message"]


# -- the correct way


def test_approval_connects_a_live_app(app: App, person: Person) -> None:
    asked = ask(app, monthlyUsd=5)
    assert set(asked) == {"id", "url", "secret", "expiresAt"}
    assert asked["url"] == f"{person.browser.origin}/approve/{asked['id']}"
    answer = person.approve(asked["url"])
    assert set(answer) == {"approval", "code"}
    assert answer["approval"] == asked["id"]
    assert app.status()["connected"] is False  # the person's answer alone connects nothing
    status = redeem(app, asked, answer["code"]).json()
    assert status == app.status()
    assert status["connected"] is True
    assert status["limits"] == {"monthlyUsd": 5}
    assert app.chat().status_code == 200


@pytest.mark.parametrize(
    ("fields", "cap"),
    [
        ({}, 5),
        ({"cap": "2.50"}, 2.5),
        ({"cap": " $7 "}, 7),
        ({"cap": "0"}, 0),
        ({"unlimited": "on"}, None),
        ({"cap": "nonsense", "unlimited": "on"}, None),
    ],
)
def test_person_sets_the_cap(
    app: App, person: Person, fields: dict[str, str], cap: float | None
) -> None:
    asked = ask(app, monthlyUsd=5)
    answer = person.approve(asked["url"], **fields)
    assert redeem(app, asked, answer["code"]).json()["limits"] == {"monthlyUsd": cap}


@pytest.mark.parametrize("cap", ["", "-1", "5,5", "1e3", "NaN", "99999999999", "five"])
def test_invalid_cap_is_refused(app: App, person: Person, cap: str) -> None:
    asked = ask(app)
    answer = person.allow(asked["url"], cap=cap)
    assert answer.status_code == 400
    assert 'aria-invalid="true"' in answer.text
    assert person.approve(asked["url"], cap="1")["code"]  # nothing was decided


def test_approved_grant_is_redeemed(app: App, person: Person) -> None:
    asked = ask_for_grant(app, 2, maxUsd=0.5)
    code = person.approve(asked["url"])["code"]
    result = redeem(app, asked, code, token=app.keys.publishable_key)
    assert result.status_code == 200, result.text
    grant = result.json()
    assert set(grant) == {"grantToken", "expiresAt", "requests"}
    assert grant["requests"] == 2
    headers = {**app.auth, "x-wattfare-grant": grant["grantToken"]}

    def spend() -> int:
        return app.http.post("/chat/completions", json=chat_body(), headers=headers).status_code

    assert [spend(), spend(), spend()] == [200, 200, 402]
    # Its result is returned once.
    refused(redeem(app, asked, code, token=app.keys.publishable_key), 409)


def test_test_app_may_request_an_approval_too(service: Service, person: Person) -> None:
    with service.app() as app:
        body = {"returnUrl": "http://localhost:5000/return"}
        asked = post(app, "/approvals", app.token(), body, "http://localhost:5000").json()
        page = person.browser.follow(person.sign_in(urlsplit(asked["url"]).path))
        assert "test app" in page.text
        location = person.browser.send(page.form("Allow"), ready="1").headers["location"]
        code = location.rpartition("&code=")[2]
        path = f"/approvals/{asked['id']}/redeem"
        body = {"code": code, "secret": asked["secret"]}
        status = post(app, path, app.token(), body, "http://localhost:5000").json()
        assert status["connected"] is True


def test_denied_approval_stays_denied(app: App, person: Person) -> None:
    asked = ask(app)
    assert person.deny(asked["url"]) == {"approval": asked["id"], "denied": "1"}
    # It can no longer be allowed.
    person.sign_in()
    page = person.browser.get(urlsplit(asked["url"]).path)
    assert page.answer.status_code == 200  # an error status would appear as an error in the console
    assert "No longer possible" in page.text
    assert "Allow" not in page.text
    answer = person.decide(asked["url"])
    assert answer.status_code == 409
    refused(redeem(app, asked, "x"), 409)
    assert app.status()["connected"] is False


# -- what must not connect


def test_mailed_link_connects_no_user(app: App, person: Person) -> None:
    """Mallory, a user of the app, opens an approval and mails its URL. The victim allows it."""
    asked = ask(app, "mallory")
    code = person.approve(asked["url"])["code"]
    # The victim's browser brings the code to the app. There, the victim is another user without the
    # secret.
    refused(redeem(app, asked, code, token=app.token("victim")), 403)
    refused(redeem(app, asked, code, token=app.token("victim"), secret="x" * 32), 403)
    # Mallory has the secret and the session, but no code.
    for guess in ("", "x" * 32, asked["id"], asked["secret"]):
        refused(redeem(app, asked, guess, token=app.token("mallory")), 403)
    assert app.status("mallory")["connected"] is False
    assert app.status("victim")["connected"] is False


@pytest.mark.parametrize(
    ("changes", "user"),
    [
        ({"code": "x" * 32}, "u1"),
        ({"code": ""}, "u1"),
        ({"secret": "x" * 32}, "u1"),
        ({"secret": ""}, "u1"),
        ({}, "u2"),
    ],
)
def test_wrong_attempt_connects_nothing_and_uses_nothing_up(
    app: App, person: Person, changes: dict[str, str], user: str
) -> None:
    asked = ask(app)
    code = person.approve(asked["url"])["code"]
    refused(redeem(app, asked, **{"code": code, "token": app.token(user), **changes}), 403)
    assert app.status("u1")["connected"] is False
    assert app.status("u2")["connected"] is False
    assert redeem(app, asked, code).json()["connected"] is True


def test_another_app_cannot_redeem(app: App, service: Service, person: Person) -> None:
    with live_app(service) as other:
        asked = ask(app)
        code = person.approve(asked["url"])["code"]
        refused(redeem(other, asked, code), 403)
        refused(redeem(other, asked, code, token=other.keys.publishable_key), 403)
        grant = ask_for_grant(app)
        code = person.approve(grant["url"])["code"]
        refused(redeem(other, grant, code, token=other.keys.publishable_key), 403)
        refused(redeem(app, grant, code), 403)  # a session token is for connections


def test_page_of_another_origin_cannot_redeem(app: App, person: Person) -> None:
    asked = ask(app)
    body = {"code": person.approve(asked["url"])["code"], "secret": asked["secret"]}
    path = f"/approvals/{asked['id']}/redeem"
    for origin in ("https://evil.example", "null", f"{ORIGIN}:444"):
        refused(post(app, path, app.token(), body, origin), 403)
    grant = ask_for_grant(app)
    given = {"code": person.approve(grant["url"])["code"], "secret": grant["secret"]}
    for origin in ("https://evil.example", "null", None):
        answer = post(
            app, f"/approvals/{grant['id']}/redeem", app.keys.publishable_key, given, origin
        )
        refused(answer, 403)
    assert post(app, path, app.token(), body, None).json()["connected"] is True  # not a browser


def test_approval_is_redeemed_once(app: App, person: Person) -> None:
    asked = ask(app)
    code = person.approve(asked["url"])["code"]
    assert redeem(app, asked, code).status_code == 200
    refused(redeem(app, asked, code), 409)
    app.http.delete("/connections", headers=bearer(app.token()))
    refused(redeem(app, asked, code), 409)
    assert app.status()["connected"] is False
    # It cannot be answered again either.
    assert person.decide(asked["url"]).status_code == 409


def at_once(app: App, *requests: tuple[dict[str, Any], str, str]) -> list[int]:
    """Redeems these concurrently: approvals, codes and credentials. Returns the statuses."""
    start = threading.Barrier(len(requests))

    def run(asked: dict[str, Any], code: str, credential: str) -> int:
        with http_client(base_url=app.service.api) as http:
            headers = {**bearer(credential), "origin": ORIGIN}
            body = {"code": code, "secret": asked["secret"]}
            start.wait()
            path = f"/approvals/{asked['id']}/redeem"
            return http.post(path, json=body, headers=headers).status_code

    with ThreadPoolExecutor(len(requests)) as threads:
        return sorted(threads.map(run, *zip(*requests, strict=True)))


@pytest.fixture(params=["sqlite", "postgresql"])
def any_app(request: pytest.FixtureRequest) -> Iterator[App]:
    """A live app of a service with either database."""
    name = "service" if request.param == "sqlite" else "on_postgresql"
    with live_app(request.getfixturevalue(name)) as app:
        yield app


@pytest.fixture(scope="module")
def on_postgresql(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Service]:
    """A service with a PostgreSQL database."""
    folder = tmp_path_factory.mktemp("on_postgresql")
    database = cluster.database()
    with run_service(folder, database=database) as running:
        yield running


def test_concurrent_redemptions_make_one_connection(any_app: App) -> None:
    app = any_app
    with Person(app.service) as person:
        asked = ask_for_grant(app)
        code = person.approve(asked["url"])["code"]
        grants = at_once(app, *[(asked, code, app.keys.publishable_key)] * 4)
        assert grants == [200, 409, 409, 409]
        asked = ask(app)
        code = person.approve(asked["url"])["code"]
        assert at_once(app, *[(asked, code, app.token())] * 4) == [200, 409, 409, 409]


def test_concurrent_payers_do_not_replace_each_other(any_app: App) -> None:
    app = any_app
    with Person(app.service) as person, Person(app.service) as other:
        for user in ("u1", "u2", "u3"):
            first, second = ask(app, user), ask(app, user)
            code = person.approve(first["url"])["code"]
            other_code = other.approve(second["url"])["code"]
            token = app.token(user)
            assert at_once(app, (first, code, token), (second, other_code, token)) == [200, 409]


def test_approval_expires_after_ten_minutes(app: App, service: Service, person: Person) -> None:
    pending, allowed = ask(app), ask(app)
    assert 590 <= pending["expiresAt"] - time.time() <= 601
    code = person.approve(allowed["url"])["code"]
    for asked in (pending, allowed):
        change(
            service,
            "UPDATE approvals SET expires_at = expires_at - 601 WHERE id = :id",
            id=asked["id"],
        )
    refused(redeem(app, allowed, code), 409)
    assert app.status()["connected"] is False
    page = person.browser.get(urlsplit(pending["url"]).path)
    assert page.answer.status_code == 410
    assert page.link("Back to the app") == ORIGIN
    assert person.decide(pending["url"]).status_code == 410


def test_later_revocation_ends_the_approval(app: App, person: Person) -> None:
    connect(app, person)
    asked = ask(app)
    code = person.approve(asked["url"])["code"]
    app.http.delete("/connections", headers=bearer(app.token()))
    refused(redeem(app, asked, code), 409)
    assert app.status()["connected"] is False
    # A token from before the revocation opens no approval. A new one does.
    assert connect(app, person)["connected"] is True


def test_token_from_before_a_revocation_opens_no_approval(app: App, person: Person) -> None:
    connect(app, person)
    old = app.token()
    app.http.delete("/connections", headers=bearer(app.token()))
    refused(post(app, "/approvals", old, {"returnUrl": RETURN_URL}), 401)


# -- who may open an approval, and where the browser returns to


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/",
        f"{ORIGIN}.evil.example/",
        f"{ORIGIN}:444/",
        f"{ORIGIN}/#x",
        "https://user@app.example.com/",
        "http://app.example.com/",
        "http://localhost:3000/",
        "javascript:alert(1)",
        "/return",
        "",
    ],
)
def test_return_url_of_another_origin_is_refused(app: App, url: str) -> None:
    refused(post(app, "/approvals", app.token(), {"returnUrl": url}), 400, 403)
    body = {"returnUrl": url, "requests": 1}
    refused(post(app, "/approvals", app.keys.publishable_key, body), 400, 403)


def test_page_of_another_origin_cannot_open_an_approval(app: App) -> None:
    for origin in ("https://evil.example", "http://localhost:3000"):
        body = {"returnUrl": f"{origin}/"}
        refused(post(app, "/approvals", app.token(), body, origin), 403)
        body = {"returnUrl": f"{origin}/", "requests": 1}
        refused(post(app, "/approvals", app.keys.publishable_key, body, origin), 403)


def test_page_must_have_the_origin_of_the_return_url(app: App) -> None:
    body = {"returnUrl": RETURN_URL, "requests": 1}
    for origin in ("https://evil.example", "null", "http://localhost:3000", None):
        refused(post(app, "/approvals", app.keys.publishable_key, body, origin), 403)
    body = {"returnUrl": RETURN_URL}
    for origin in ("https://evil.example", "null"):
        refused(post(app, "/approvals", app.token(), body, origin), 403)
    assert post(app, "/approvals", app.token(), body, None).status_code == 200  # not a browser


def test_app_without_an_origin_cannot_open_an_approval(service: Service) -> None:
    with service.app("live") as app:
        refused(post(app, "/approvals", app.token(), {"returnUrl": RETURN_URL}), 403)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"returnUrl": 5}, 400),
        ({"returnUrl": RETURN_URL, "requests": 1}, 400),
        ({"returnUrl": RETURN_URL, "maxUsd": 1}, 400),
        ([], 400),
    ],
)
def test_invalid_connection_request_is_refused(app: App, body: Any, status: int) -> None:
    refused(post(app, "/approvals", app.token(), body), status)


@pytest.mark.parametrize(
    "fields", [{}, {"requests": 0}, {"requests": 1001}, {"requests": 1, "maxUsd": -1}]
)
def test_invalid_grant_request_is_refused(app: App, fields: dict[str, Any]) -> None:
    body = {"returnUrl": RETURN_URL, **fields}
    refused(post(app, "/approvals", app.keys.publishable_key, body), 400)


def test_other_credentials_cannot_open_an_approval(app: App) -> None:
    body = {"returnUrl": RETURN_URL}
    for credential in (app.keys.secret_key, "pk_live_x", "gt_x", "x"):
        refused(post(app, "/approvals", credential, body), 401)
        refused(post(app, "/approvals/x/redeem", credential, {"code": "x", "secret": "x"}), 401)
    refused(app.http.post("/approvals", json=body), 401)


def test_unknown_approval_is_refused(app: App, person: Person) -> None:
    asked = {"id": "x" * 32, "secret": "x" * 32}
    other = refused(redeem(app, asked, "x"), 403)
    asked = ask(app, "u2")
    assert refused(redeem(app, {**asked, "secret": "y"}, "x"), 403) == other
    assert person.browser.get("/approve/nothing").answer.status_code == 404
    assert person.browser.get(f"/approve/{'x' * 5000}").answer.status_code == 404


def test_cors_admits_the_apps_own_pages_only(app: App) -> None:
    allowed = "access-control-allow-origin"
    body = {"returnUrl": RETURN_URL}
    answer = post(app, "/approvals", app.token(), body)
    assert answer.headers[allowed] == ORIGIN
    assert "Origin" in answer.headers["vary"]
    # Its pages can read the reason for a refusal.
    answer = post(app, "/approvals", app.token(), {"returnUrl": "https://evil.example/"})
    assert answer.headers[allowed] == ORIGIN
    for path in ("/approvals", "/approvals/x/redeem", "/connections", "/grants"):
        preflight = {"origin": ORIGIN, "access-control-request-method": "POST"}
        assert app.http.options(path, headers=preflight).status_code == 204
        credential = app.keys.publishable_key if path == "/grants" else app.token()
        answer = post(app, path, credential, body, "https://evil.example")
        assert allowed not in answer.headers
    answer = app.http.get("/connections", headers={**bearer(app.token()), "origin": ORIGIN})
    assert answer.headers[allowed] == ORIGIN


# -- what the token of a live app may change


def test_token_of_a_live_app_only_lowers_the_cap(app: App, person: Person) -> None:
    token = app.token(monthlyUsd=50)
    refused(post(app, "/connections", token, {"monthlyUsd": 1}), 403)  # not connected
    assert connect(app, person, cap="10")["limits"] == {"monthlyUsd": 10}
    for amount in (10.01, 50, None):
        refused(post(app, "/connections", app.token(), {"monthlyUsd": amount}), 403)
    refused(post(app, "/connections", app.token(), {}), 403)
    assert app.status()["limits"] == {"monthlyUsd": 10}
    for amount in (10, 4):
        answer = post(app, "/connections", app.token(), {"monthlyUsd": amount})
        assert answer.json()["limits"] == {"monthlyUsd": amount}
    refused(post(app, "/connections", app.token(), {"monthlyUsd": 5}), 403)
    # The person still pays.
    assert connect(app, person, cap="20")["limits"] == {"monthlyUsd": 20}
    stale = app.token()
    app.http.delete("/connections", headers=bearer(app.token()))
    refused(post(app, "/connections", stale, {"monthlyUsd": 1}), 401)
    refused(post(app, "/connections", app.token(), {"monthlyUsd": 1}), 403)
    assert app.status()["connected"] is False


def test_live_app_has_no_grants_without_a_person(app: App) -> None:
    refused(post(app, "/grants", app.keys.publishable_key, {"requests": 1}), 403)


# -- rates


def test_redemption_attempts_are_limited(app: App, person: Person) -> None:
    asked = ask(app)
    code = person.approve(asked["url"])["code"]
    token = app.token()
    statuses = [redeem(app, asked, "x", token=token).status_code for _ in range(11)]
    assert statuses == [403] * 10 + [429]
    assert redeem(app, asked, code, token=token).status_code == 429


def test_log_holds_no_secret(app: App, service: Service, person: Person) -> None:
    asked = ask(app)
    code = person.approve(asked["url"])["code"]
    redeem(app, asked, "x" * 32)
    redeem(app, asked, code)
    redeem(app, asked, code)
    cookie = person.browser.http.cookies["wattfare"]
    for secret in (asked["secret"], code, cookie, app.token()):
        assert not any(secret in line for line in service.log)
