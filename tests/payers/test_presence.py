"""A page that cannot see its popup asks the service whether the person has closed it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from support.people import Person, ask, ask_for_grant, post
from support.service import App

OPEN = {"state": "pending", "open": True}
LEFT = {"state": "pending", "open": False}


def state_of(app: App, asked: dict[str, Any], **other: str) -> httpx.Response:
    credential = other.get("token") or app.token()
    return post(
        app,
        f"/approvals/{asked['id']}/state",
        credential,
        {"secret": other.get("secret", asked["secret"])},
    )


def close(person: Person, asked: dict[str, Any], **fields: str) -> httpx.Response:
    """What the page sends when it is closed."""
    path = urlsplit(asked["url"]).path
    form = person.browser.get(path).form("Deny")
    return person.browser.post(f"{path}/left", {"csrf": form.fields["csrf"], **fields})


def test_page_is_closed_and_opened_again(app: App, person: Person) -> None:
    asked = ask(app)
    assert state_of(app, asked).json() == OPEN
    assert close(person, asked).status_code == 204
    assert state_of(app, asked).json() == LEFT
    person.browser.get(urlsplit(asked["url"]).path)
    assert state_of(app, asked).json() == OPEN


def test_reloaded_page_is_open(app: App, person: Person) -> None:
    """The browser leaves the old page after the service has sent the new one."""
    asked = ask(app)
    close(person, asked)
    assert close(person, asked, open="1").status_code == 204
    assert state_of(app, asked).json() == OPEN


def test_closed_page_still_counts_if_the_person_allows(app: App, person: Person) -> None:
    asked = ask(app)
    close(person, asked)
    person.approve(asked["url"])
    assert state_of(app, asked).json() == {"state": "approved", "open": True}
    denied = ask(app)
    person.deny(denied["url"])
    close_after(person, denied)
    assert state_of(app, denied).json() == {"state": "denied", "open": True}


def close_after(person: Person, asked: dict[str, Any]) -> None:
    """A page that is closed after the answer changes nothing."""
    path = urlsplit(asked["url"]).path
    form = person.browser.get("/sign-in").forms[0]
    person.browser.post(f"{path}/left", {"csrf": form.fields["csrf"]})


def test_closed_page_of_a_grant(app: App, person: Person) -> None:
    asked = ask_for_grant(app)
    key = app.keys.publishable_key
    assert state_of(app, asked, token=key).json() == OPEN
    close(person, asked)
    assert state_of(app, asked, token=key).json() == LEFT


@pytest.mark.parametrize("wrong", ["secret", "user", "id"])
def test_only_the_requesting_page_can_see_it(app: App, wrong: str) -> None:
    asked = ask(app)
    given: dict[str, str] = {}
    if wrong == "secret":
        given["secret"] = "x" * 32
    elif wrong == "user":
        given["token"] = app.token("somebody-else")
    else:
        asked = {**asked, "id": "unknown"}
    answer = state_of(app, asked, **given)
    assert answer.status_code == 403
    assert "wrong" in answer.json()["error"]["message"]


def test_another_site_cannot_close_the_page(app: App, person: Person) -> None:
    asked = ask(app)
    answer = person.browser.post(f"{urlsplit(asked['url']).path}/left", {"csrf": "forged"})
    assert answer.status_code == 403
    assert state_of(app, asked).json() == OPEN
