"""Signing in on the service's pages: passkeys, recovery codes, cookies, and recent sign-ins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from support.authenticator import Authenticator
from support.pages import Browser, Page
from support.people import Person, ask, change, live_app
from support.service import App, Service, run_service

from wattfare_mw.service.payers import people

CODE = re.compile(r"(?:[0-9a-z]{4}-){6}[0-9a-z]{4}")


def payer_of(service: Service, person: Person) -> str:
    return person.authenticator.credentials[0].user.hex()


def is_signed_in(person: Person, path: str = "/sign-in") -> bool:
    """True if the sign-in page redirects at once."""
    answer = person.browser.http.get(path)
    return answer.status_code == 303


def recovery_codes(person: Person) -> list[str]:
    form = person.form()
    answer = person.browser.post("/sign-in/recovery-codes", {"csrf": form.fields["csrf"]})
    assert answer.status_code == 200, answer.text
    return CODE.findall(Page(answer).text)


def enter(person: Person, code: str, next_: str = "/budget"):
    page = person.browser.get("/sign-in?again=1")
    return person.browser.send(page.form("Sign in with a code"), code=code, next=next_)


def grow_old(service: Service, person: Person, seconds: int = 601) -> None:
    changed = change(
        service,
        "UPDATE sign_ins SET fresh_at = fresh_at - :seconds WHERE payer_id = :payer",
        seconds=seconds,
        payer=payer_of(service, person),
    )
    assert changed == 1


# -- passkeys


def test_passkey_is_created_and_signs_in(person: Person) -> None:
    answer = person.sign_in()
    assert (answer.status_code, answer.headers["location"]) == (303, "/budget")
    assert is_signed_in(person)
    cookie = answer.headers["set-cookie"]
    assert re.search(r"\bwattfare=[A-Za-z0-9_-]{43}; ", cookie)
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    sign_out(person)
    assert not is_signed_in(person)
    assert person.sign_in(kind="sign-in").status_code == 303
    assert is_signed_in(person)


def test_payer_has_a_limited_number_of_passkeys(person: Person) -> None:
    """A script cannot fill the table, or the list that is sent with each challenge."""
    for _ in range(people.MAX_PASSKEYS):
        assert person.sign_in(kind="create").status_code == 303
    answer = person.sign_in(kind="create")
    assert answer.status_code == 409
    assert "20 passkeys" in Page(answer).text
    person.authenticator.credentials.pop()  # which the service has refused
    assert person.sign_in(kind="sign-in").status_code == 303


def sign_out(person: Person) -> None:
    page = person.browser.get("/sign-in?again=1")
    assert person.browser.send(page.form("Sign out")).status_code == 303


def test_sign_out_and_sign_in_lead_back_to_the_same_page(person: Person) -> None:
    path = "/budget/calls?connection=1&before=2.3"
    person.sign_in()
    page = person.browser.get(f"/sign-in?{urlencode({'next': path, 'again': 1})}")
    page = person.browser.follow(person.browser.send(page.form("Sign out")))
    assert page.form("Sign in with a code").fields["next"] == path


def test_each_sign_in_has_its_own_cookie(person: Person, service: Service) -> None:
    """A cookie from before a sign-in is invalid after it, and no later cookie ends."""
    person.sign_in()
    first = person.browser.http.cookies["wattfare"]
    person.sign_in()
    second = person.browser.http.cookies["wattfare"]
    assert first != second
    sign_out(person)
    for cookie in (first, second, "x" * 43, "x", ""):
        with Browser(service, cookie) as browser:
            assert browser.http.get("/sign-in").status_code == 200


def test_challenge_is_used_once(person: Person) -> None:
    form = person.form()
    asked = person.challenge(form, "create")
    credential = person.authenticator.create(asked["options"])
    assert (
        person.browser.send(form, challenge=asked["id"], credential=credential).status_code == 303
    )
    sign_out(person)
    form = person.form()
    asked = person.challenge(form, "sign-in")
    credential = person.authenticator.sign_in(asked["options"])
    sent = {"challenge": asked["id"], "credential": credential}
    assert person.browser.send(form, **sent).status_code == 303
    sign_out(person)
    form = person.form()
    assert person.browser.send(form, **sent).status_code == 403
    assert not is_signed_in(person)


def test_failed_attempt_uses_up_its_challenge(person: Person) -> None:
    person.sign_in()
    sign_out(person)
    form = person.form()
    asked = person.challenge(form, "sign-in")
    credential = person.authenticator.sign_in(asked["options"])
    broken = {**json.loads(credential), "rawId": "AAEC"}
    sent = {"challenge": asked["id"], "credential": json.dumps(broken)}
    assert person.browser.send(form, **sent).status_code == 403
    sent["credential"] = credential
    assert person.browser.send(form, **sent).status_code == 403
    assert not is_signed_in(person)


def test_challenge_is_for_one_browser_and_one_ceremony(
    person: Person, other_person: Person
) -> None:
    person.sign_in()
    sign_out(person)
    theirs = person.challenge(person.form(), "sign-in")
    credential = person.authenticator.sign_in(theirs["options"])
    # Another browser with the answer, for example one that is tricked into Mallory's account.
    form = other_person.form()
    sent = {"challenge": theirs["id"], "credential": credential}
    assert other_person.browser.send(form, **sent).status_code == 403
    assert not is_signed_in(other_person)
    mine = person.challenge(person.form(), "create")
    credential = person.authenticator.sign_in(mine["options"])
    sent = {"challenge": mine["id"], "credential": credential}
    assert person.browser.send(person.form(), **sent).status_code == 403


def test_challenge_expires(person: Person, service: Service) -> None:
    form = person.form()
    asked = person.challenge(form, "create")
    credential = person.authenticator.create(asked["options"])
    change(service, "UPDATE challenges SET expires_at = expires_at - 301")
    sent = {"challenge": asked["id"], "credential": credential}
    assert person.browser.send(form, **sent).status_code == 403


def test_copied_passkey_is_detected(person: Person, service: Service) -> None:
    person.sign_in()
    for _ in range(2):
        sign_out(person)
        person.sign_in()
    sign_out(person)
    person.authenticator.credentials[0].count = 0
    assert person.sign_in().status_code == 403
    assert not is_signed_in(person)


def test_another_origin_is_refused(person: Person) -> None:
    """A site that imitates our page gets signatures for its own origin only."""
    person.sign_in()
    sign_out(person)
    origin = person.authenticator.origin
    for wrong in ("https://evil.example", origin + "0", origin.replace("localhost", "127.0.0.1")):
        person.authenticator.origin = wrong
        assert person.sign_in().status_code == 403
        assert not is_signed_in(person)


def test_payer_adds_a_second_passkey(person: Person, service: Service) -> None:
    person.sign_in()
    form = person.form()
    asked = person.challenge(form, "create")
    assert [each["type"] for each in asked["options"]["excludeCredentials"]] == ["public-key"]
    credential = person.authenticator.create(asked["options"])
    sent = {"challenge": asked["id"], "credential": credential}
    assert person.browser.send(form, **sent).status_code == 303
    first, second = person.authenticator.credentials
    assert first.user == second.user
    grow_old(service, person)
    answer = person.browser.post(
        "/sign-in/challenge", {"csrf": person.form().fields["csrf"], "kind": "create"}
    )
    assert answer.status_code == 403


def test_unknown_passkey_is_refused(person: Person) -> None:
    stranger = Authenticator(person.browser.origin)
    stranger.create({"user": {"id": "AAEC"}, "rp": {"id": "localhost"}, "challenge": "AAEC"})
    form = person.form()
    asked = person.challenge(form, "sign-in")
    sent = {"challenge": asked["id"], "credential": stranger.sign_in(asked["options"])}
    assert person.browser.send(form, **sent).status_code == 403
    assert not is_signed_in(person)


@pytest.mark.parametrize("credential", ["", "x", "{}", "[]", '{"id": "x"}', "x" * 40_000])
def test_invalid_authenticator_answer_is_refused(person: Person, credential: str) -> None:
    for kind in ("create", "sign-in"):
        form = person.form()
        asked = person.challenge(form, kind)
        answer = person.browser.send(form, challenge=asked["id"], credential=credential)
        assert answer.status_code == 403
    assert person.browser.send(person.form(), challenge="", credential="{}").status_code == 403


# -- recovery codes


def test_recovery_codes_sign_in(person: Person) -> None:
    person.sign_in()
    codes = recovery_codes(person)
    assert len(set(codes)) == 10
    sign_out(person)
    answer = enter(person, codes[0])
    assert (answer.status_code, answer.headers["location"]) == (303, "/budget")
    assert is_signed_in(person)
    sign_out(person)
    assert enter(person, codes[0]).status_code == 403  # each works once
    # In any notation that a person may use.
    assert enter(person, codes[1].upper().replace("-", " ").replace("0", "O")).status_code == 303
    # New codes replace the old ones.
    new = recovery_codes(person)
    sign_out(person)
    assert enter(person, codes[2]).status_code == 403
    assert enter(person, new[0]).status_code == 303


def test_recovery_code_counts_as_a_recent_sign_in(
    person: Person, app: App, service: Service
) -> None:
    person.sign_in()
    code = recovery_codes(person)[0]
    sign_out(person)
    asked = ask(app)
    path = urlsplit(asked["url"]).path
    page = person.browser.get(path)
    answer = person.browser.send(page.form("Sign in with a code"), code=code)
    assert answer.headers["location"] == path
    assert person.approve(asked["url"])["code"]


def test_codes_are_shown_once_and_only_after_a_recent_sign_in(
    person: Person, service: Service
) -> None:
    person.sign_in()
    codes = recovery_codes(person)
    for path in ("/sign-in/recovery-codes", "/budget", "/sign-in?again=1"):
        text = person.browser.get(path).answer.text
        assert not any(code in text for code in codes)
    grow_old(service, person)
    csrf = person.form().fields["csrf"]
    answer = person.browser.post("/sign-in/recovery-codes", {"csrf": csrf})
    assert answer.status_code == 403
    assert not CODE.search(answer.text)


def test_database_holds_no_secret(person: Person, service: Service) -> None:
    person.sign_in()
    codes = recovery_codes(person)
    cookie = person.browser.http.cookies["wattfare"]
    sign_out(person)
    enter(person, codes[0])
    enter(person, codes[1])
    kept = b""
    for suffix in ("", "-wal"):
        kept += Path(service.database.removeprefix("sqlite:///") + suffix).read_bytes()
    for secret in (*codes, cookie, person.browser.http.cookies["wattfare"]):
        assert secret.encode() not in kept
        assert not any(secret in line for line in service.log)


def test_guessing_codes_is_limited(tmp_path: Path) -> None:
    with run_service(tmp_path) as service, Person(service) as person:
        person.sign_in()
        code = recovery_codes(person)[0]
        sign_out(person)
        statuses = [enter(person, "0000-0000").status_code for _ in range(11)]
        assert statuses == [403] * 10 + [429]
        answer = enter(person, code)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert person.sign_in().status_code == 303  # with a passkey, there is nothing to guess


def test_sign_ins_are_limited(tmp_path: Path) -> None:
    with run_service(tmp_path) as service, Person(service) as person:
        form = person.form()
        body = {"csrf": form.fields["csrf"], "kind": "sign-in"}
        statuses = [person.browser.post("/sign-in/challenge", body).status_code for _ in range(121)]
        assert statuses == [200] * 120 + [429]


# -- how recent a sign-in is


def test_old_sign_in_cannot_approve(person: Person, app: App, service: Service) -> None:
    person.sign_in()
    grow_old(service, person, 590)
    asked = ask(app)
    path = urlsplit(asked["url"]).path
    page = person.browser.get(path)
    form = page.form("Allow")
    grow_old(service, person, 11)
    answer = person.browser.send(form, ready="1")
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    page = person.browser.get(path)
    assert not any(form.button == "Allow" for form in page.forms)
    assert "Sign in with a passkey" in page.answer.text
    assert "Create a passkey" not in page.answer.text
    # With a new sign-in, it continues.
    person.sign_in(path)
    assert person.approve(asked["url"])["code"]


def test_sign_in_expires(person: Person, service: Service) -> None:
    person.sign_in()
    change(
        service,
        "UPDATE sign_ins SET expires_at = expires_at - 43201 WHERE payer_id = :payer",
        payer=payer_of(service, person),
    )
    assert not is_signed_in(person)


def test_deleted_payer_cannot_sign_in(person: Person, service: Service) -> None:
    person.sign_in()
    codes = recovery_codes(person)
    change(
        service,
        "UPDATE payers SET deleted_at = 1 WHERE id = :payer",
        payer=payer_of(service, person),
    )
    assert not is_signed_in(person)
    assert person.sign_in().status_code == 403
    assert enter(person, codes[0]).status_code == 403


# -- where a sign-in leads, and who may send its forms


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "/%5cevil.example",
        "javascript:alert(1)",
        "/budget\r\nSet-Cookie: a=b",
        "/pages/x",
        "/sign-out",
        "budget",
        "",
        "/budget" + "x" * 2000,
    ],
)
def test_sign_in_leads_to_our_own_pages_only(person: Person, path: str) -> None:
    form = person.form()
    asked = person.challenge(form, "create")
    credential = person.authenticator.create(asked["options"])
    sent = {"challenge": asked["id"], "credential": credential, "next": path}
    answer = person.browser.send(form, **sent)
    assert (answer.status_code, answer.headers["location"]) == (303, "/budget")
    answer = person.browser.http.get("/sign-in", params={"next": path})
    assert (answer.status_code, answer.headers["location"]) == (303, "/budget")


PATHS = [
    "/sign-in/challenge",
    "/sign-in/passkey",
    "/sign-in/code",
    "/sign-in/recovery-codes",
    "/sign-out",
    "/approve/{id}",
]


@pytest.mark.parametrize("path", PATHS)
def test_each_form_needs_the_token_of_its_browser(
    person: Person, other_person: Person, app: App, path: str
) -> None:
    other_person.sign_in()
    token = other_person.form().fields["csrf"]
    person.sign_in()
    mine = person.form().fields["csrf"]
    asked = ask(app)
    path = path.format(id=asked["id"])
    fields = {"kind": "create", "decision": "allow", "cap": "1", "ready": "1"}
    for csrf in ({}, {"csrf": ""}, {"csrf": "x" * 32}, {"csrf": token}):
        assert person.browser.post(path, {**fields, **csrf}).status_code == 403
    for headers in (
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "origin": "https://evil.example"},
    ):
        answer = person.browser.post(path, {**fields, "csrf": mine}, **headers)
        assert answer.status_code == 403
    assert is_signed_in(person)
    assert app.status()["connected"] is False
    # Nothing was decided.
    assert person.approve(asked["url"])["code"]


def test_urls_ignore_the_host_header(app: App, person: Person) -> None:
    headers = {"host": "evil.example", "x-forwarded-host": "evil.example"}
    body = {"returnUrl": "https://app.example.com/"}
    answer = app.http.post(
        "/approvals",
        json=body,
        headers={**headers, "authorization": f"Bearer {app.token()}"},
    )
    assert answer.json()["url"].startswith(f"{person.browser.origin}/approve/")
    form = person.form()
    answer = person.browser.http.post(
        "/sign-in/challenge",
        data={"csrf": form.fields["csrf"], "kind": "create"},
        headers={**headers, "sec-fetch-site": "same-origin"},
    )
    assert answer.json()["options"]["rp"]["id"] == "localhost"


def test_cookie_is_bound_to_the_host_under_tls(tmp_path: Path) -> None:
    public_url = "https://wattfare.example.com"
    with run_service(tmp_path, "--public-url", public_url) as service:
        with live_app(service) as app:
            asked = ask(app)
            assert asked["url"] == f"{public_url}/approve/{asked['id']}"
        with Person(service) as person:
            answer = person.browser.http.get("/sign-in")
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-wattfare-visit=")
            assert "Secure" in cookie
            assert "HttpOnly" in cookie
            assert "Path=/" in cookie
            assert "Domain" not in cookie
