"""What the page shows, and its second page: without JavaScript, and if another person pays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from support.pages import Page
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
    returned,
)
from support.service import App, Service, run_service
from support.upstream import Upstream

ANOTHER = "Another person pays for this account now."


def field(page: Page, name: str) -> dict[str, str]:
    (found,) = [each for tag, each in page.elements if tag == "input" and each.get("name") == name]
    return found


def label_of(app: App, user: str, label: object) -> httpx.Response:
    body = {"appUserId": user, "accountLabel": label}
    return app.http.post("/sessions", json=body, headers=app.auth)


def test_page_shows_the_app_and_the_account(service: Service, person: Person) -> None:
    with live_app(service, "Poems & <b>more</b>") as app:
        token = label_of(app, "u1", "mia@example.com").json()["token"]
        asked = ask(app, token=token)
        # Anyone with the link sees the app. Only a signed-in person sees the account.
        page = person.browser.get(urlsplit(asked["url"]).path)
        assert "Poems & <b>more</b>" in page.text
        assert ORIGIN in page.text
        assert "mia@example.com" not in page.text
        page = person.open(asked["url"])
        assert "mia@example.com" in page.text
        assert "test app" not in page.text
        assert field(page, "cap")["value"] == "10.00"
        assert "checked" not in field(page, "unlimited")


@pytest.mark.parametrize(
    ("limit", "value", "answers"),
    [
        ({"monthlyUsd": 5}, "5.00", "about 16,000 answers of wattfare/echo"),
        ({"monthlyUsd": 0.5}, "0.50", "about 1,600 answers of wattfare/echo"),
        ({"monthlyUsd": 0.001}, "0.001", "about 3 answers of wattfare/echo"),
        ({"monthlyUsd": 0.0004}, "0.0004", "about 1 answer of wattfare/echo"),
        ({"monthlyUsd": 0.0001}, "0.0001", "less than one answer of wattfare/echo"),
        ({"monthlyUsd": None}, "10.00", "about 33,000 answers of wattfare/echo"),
    ],
)
def test_page_shows_how_many_answers_the_cap_pays_for(
    app: App, person: Person, limit: dict, value: str, answers: str
) -> None:
    page = person.open(ask(app, **limit)["url"])
    assert field(page, "cap")["value"] == value
    assert answers in page.text
    assert "checked" not in field(page, "unlimited")  # the person must tick it


def test_page_shows_the_average_cost_of_the_apps_answers(app: App, person: Person) -> None:
    connect(app, person, cap="1")
    for _ in range(2):
        assert app.chat("one two three four five six seven").status_code == 200  # $0.000021
    asked = ask(app, "u2", monthlyUsd=0.01)
    page = person.open(asked["url"])
    assert "about 470 answers of wattfare/echo" in page.text


def test_page_of_a_grant_shows_its_limits(app: App, person: Person) -> None:
    page = person.open(ask_for_grant(app, 3, maxUsd=0.25)["url"])
    assert "3 requests within 24 hours, for at most $0.25 in total" in page.text
    assert not any(each.get("name") == "cap" for _, each in page.elements)


def test_security_headers_of_the_page(app: App, person: Person) -> None:
    for page in (
        person.browser.get(urlsplit(ask(app)["url"]).path),
        person.open(ask(app)["url"]),
    ):
        headers = page.answer.headers
        policy = dict(
            part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert policy["form-action"] == f"'self' {ORIGIN}"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert not page.inline
        assert len(page.answer.content) < 30_000


def test_return_sends_no_referrer(app: App, person: Person) -> None:
    answer = person.allow(ask(app)["url"])
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


# -- the second page


def test_without_javascript_allow_has_a_second_page(app: App, person: Person) -> None:
    asked = ask(app)
    form = person.open(asked["url"]).form("Allow")
    answer = person.browser.send(form, cap="3")
    assert answer.status_code == 200
    assert app.status()["connected"] is False
    page = Page(answer)
    assert "$3.00" in page.text
    answer = returned(person.browser.send(page.form("Allow")))
    assert redeem(app, asked, answer["code"]).json()["limits"] == {"monthlyUsd": 3}


def test_without_javascript_any_amount_is_confirmed(app: App, person: Person) -> None:
    asked = ask(app)
    form = person.open(asked["url"]).form("Allow")
    page = Page(person.browser.send(form, unlimited="on"))
    assert "any amount" in page.text
    answer = returned(person.browser.send(page.form("Allow")))
    assert redeem(app, asked, answer["code"]).json()["limits"] == {"monthlyUsd": None}


def test_without_javascript_a_grant_or_a_denial(app: App, person: Person) -> None:
    asked = ask_for_grant(app)
    page = Page(person.browser.send(person.open(asked["url"]).form("Allow")))
    code = returned(person.browser.send(page.form("Allow")))["code"]
    answer = redeem(app, asked, code, token=app.keys.publishable_key)
    assert answer.json()["requests"] == 2
    asked = ask(app)
    page = Page(person.browser.send(person.open(asked["url"]).form("Allow")))
    assert returned(person.browser.send(page.form("Deny")))["denied"] == "1"


def test_second_click_also_redirects_back(app: App, person: Person) -> None:
    asked = ask(app)
    form = person.open(asked["url"]).form("Allow")
    first = returned(person.browser.send(form, ready="1", cap="2"))
    second = returned(person.browser.send(form, ready="1", cap="500"))
    assert first["code"] != second["code"]
    assert redeem(app, asked, first["code"]).status_code == 403
    assert redeem(app, asked, second["code"]).json()["limits"] == {"monthlyUsd": 2}
    answer = person.browser.send(form, ready="1")
    assert answer.status_code == 409


@pytest.mark.parametrize(
    ("first", "second"), [("500", "2"), ("2", "500"), (None, "2"), ("2", None)]
)
def test_lower_cap_of_two_answers_counts(
    app: App, person: Person, first: str | None, second: str | None
) -> None:
    """A person who goes back to enter a lower cap gets the lower one."""
    asked = ask(app)
    form = person.open(asked["url"]).form("Allow")
    code = ""
    for cap in (first, second):
        written = {"unlimited": "on"} if cap is None else {"cap": cap}
        code = returned(person.browser.send(form, ready="1", **written))["code"]
    assert redeem(app, asked, code).json()["limits"] == {"monthlyUsd": 2}


def test_another_person_cannot_answer_again(app: App, person: Person, other_person: Person) -> None:
    asked = ask(app)
    person.approve(asked["url"])
    other_person.sign_in()
    assert other_person.decide(asked["url"]).status_code == 409


# -- another person pays


def test_second_payer_confirms_and_replaces_the_first(
    app: App, person: Person, other_person: Person
) -> None:
    connect(app, person, cap="5")
    assert app.chat().status_code == 200
    asked = ask(app)
    form = other_person.open(asked["url"]).form("Allow")
    answer = other_person.browser.send(form, ready="1", cap="7")
    page = Page(answer)
    assert answer.status_code == 200
    assert ANOTHER in page.text
    assert app.status()["limits"] == {"monthlyUsd": 5}
    code = returned(other_person.browser.send(page.form("Allow"), ready="1"))["code"]
    assert app.status()["limits"] == {"monthlyUsd": 5}  # until the app's page redeems it
    status = redeem(app, asked, code).json()
    assert status["limits"] == {"monthlyUsd": 7}
    assert status["usage"] == {"monthlyUsd": 0}  # the first payer's spending stays theirs
    # The first payer may return with the same confirmation, and keeps their spending.
    asked = ask(app)
    page = Page(person.allow(asked["url"]))
    assert ANOTHER in page.text
    code = returned(person.browser.send(page.form("Allow"), ready="1", cap="5"))["code"]
    status = redeem(app, asked, code).json()
    assert status["usage"]["monthlyUsd"] > 0


def test_confirmation_is_for_one_payer_and_one_approval(
    app: App, person: Person, other_person: Person
) -> None:
    connect(app, person)
    first, second = ask(app), ask(app)
    page = Page(other_person.allow(first["url"]))
    agreed = page.form("Allow").fields["replace"]
    for replace in ("", "1", "on", "x" * 64, agreed):
        answer = other_person.decide(second["url"], replace=replace, confirmed="1")
        assert answer.status_code == 200
        assert ANOTHER in answer.text


def test_payer_who_connects_in_between_is_not_replaced(
    app: App, person: Person, other_person: Person
) -> None:
    first, second = ask(app), ask(app)
    code = person.approve(first["url"])["code"]
    other_code = other_person.approve(second["url"])["code"]  # no payer is connected yet
    assert redeem(app, first, code).status_code == 200
    assert redeem(app, second, other_code).status_code == 409
    assert app.status()["connected"] is True


def test_same_payer_needs_no_second_confirmation(app: App, person: Person) -> None:
    connect(app, person, cap="20")
    page = person.open(ask(app, monthlyUsd=5)["url"])
    assert "the cap is $20.00 now" in page.text
    assert field(page, "cap")["value"] == "20.00"
    assert returned(person.browser.send(page.form("Allow"), ready="1"))["code"]


def test_no_page_names_another_payer(app: App, person: Person, other_person: Person) -> None:
    connect(app, person)
    payer_id = person.authenticator.credentials[0].user.hex()
    asked = ask(app)
    shown = [
        other_person.open(asked["url"]).answer.text,
        other_person.allow(asked["url"]).text,
    ]
    assert not any(payer_id in text for text in shown)


# -- the account's label


def test_page_shows_the_label_of_an_account(app: App, person: Person) -> None:
    for label in (None, "", "  "):
        token = label_of(app, "u1", label).json()["token"]
        assert "u1" in person.open(ask(app, token=token)["url"]).text
    token = label_of(app, "u1", " <i>Mia</i> 👩\u200d💻 ").json()["token"]
    assert "<i>Mia</i> 👩\u200d💻" in person.open(ask(app, token=token)["url"]).text


@pytest.mark.parametrize(
    "label", ["x" * 201, "a\nb", "a\0b", "a\u202eb", "a\u2066b", "a\u200fb", 5, ["a"], {"a": "b"}]
)
def test_invalid_label_is_refused(app: App, label: object) -> None:
    answer = label_of(app, "u1", label)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


# -- the operator's money


@contextmanager
def paid_by_operator(tmp_path: Path, upstream: Upstream, *options: str) -> Iterator[App]:
    """A live app of a service whose operator pays."""
    key = {"WATTFARE_UPSTREAM_KEY": "sk-operator"}
    upstream_options = ("--upstream", upstream.url, "--user-ceiling-usd", "4", *options)
    with run_service(tmp_path, *upstream_options, env=key) as service, live_app(service) as app:
        yield app


def test_page_shows_the_ceiling_of_the_operator(tmp_path: Path, upstream: Upstream) -> None:
    with paid_by_operator(tmp_path, upstream) as app, Person(app.service) as person:
        asked = ask(app)
        page = person.open(asked["url"])
        assert "This service pays at most $4.00 a month." in page.text
        code = returned(person.browser.send(page.form("Allow"), ready="1", unlimited="on"))["code"]
        assert redeem(app, asked, code).json()["limits"] == {"monthlyUsd": 4}


def test_grants_of_the_operators_money_are_limited(tmp_path: Path, upstream: Upstream) -> None:
    body = {"returnUrl": RETURN_URL, "requests": 1}
    options = ("--funding", "operator")
    with paid_by_operator(tmp_path, upstream, *options) as app:
        answer = post(app, "/approvals", app.keys.publishable_key, body)
        assert answer.status_code == 403
        assert "ceiling" in answer.json()["error"]["message"]
    options = ("--grant-ceiling-usd", "2", "--grant-max-usd", "0.5")
    with paid_by_operator(tmp_path, upstream, *options) as app, Person(app.service) as person:
        statuses = []
        for _ in range(2):
            asked = ask_for_grant(app, 1, maxUsd=50)
            code = person.approve(asked["url"])["code"]
            answer = redeem(app, asked, code, token=app.keys.publishable_key)
            statuses.append(answer.status_code)
        # One address takes a quarter of what all grants may hold.
        assert statuses == [200, 429]


def test_new_passkey_does_not_reset_the_operators_ceiling(
    tmp_path: Path, upstream: Upstream
) -> None:
    with paid_by_operator(tmp_path, upstream) as app, Person(app.service) as person:
        connect(app, person)
        change(
            app.service,
            "INSERT INTO totals (app_id, user_id, payer_id, month, billed_nanos, reserved_nanos) "
            "VALUES (:app, 'u1', :payer, :month, 3900000000, 0)",
            app=app.keys.app_id,
            payer=person.authenticator.credentials[0].user.hex(),
            month=time.strftime("%Y-%m", time.gmtime()),
        )
        assert app.status()["remainingUsd"] == 0.1
        with Person(app.service) as same_person_with_another_passkey:
            asked = ask(app)
            page = Page(same_person_with_another_passkey.allow(asked["url"]))
            form = page.form("Allow")
            answer = same_person_with_another_passkey.browser.send(form, ready="1")
            status = redeem(app, asked, returned(answer)["code"]).json()
        assert status["remainingUsd"] <= 0.1
