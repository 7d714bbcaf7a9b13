"""What a person does: sign in, choose a cap, allow or deny, chat."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, Route, expect
from support.service import eventually

from browsers.people import Person
from browsers.site import Site

CREATE = "Create a passkey"
SIGN_IN = "Sign in with a passkey"
ALLOW, DENY, STOP = "Allow", "Deny", "Stop"
CAP = "Monthly cap"


def ask(site: Site, user: str, **limit: Any) -> dict[str, Any]:
    """Opens an approval for this app user, as the app's page does; ``monthlyUsd=…``."""
    body = {"returnUrl": site.return_url}
    answer = site.api("POST", "/approvals", site.token(user, **limit), json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def allow(person: Person, site: Site, page: Page, cap: float | str | None = None) -> str:
    """Approves on this page. Returns the code with which the browser returns to the app."""
    with page.expect_request(re.compile(r"[?&]code=")) as returned:
        approve(person, page, cap)
    assert returned.value.url.startswith(site.app)
    return parse_qs(urlsplit(returned.value.url).query)["code"][0]


def redeem(site: Site, user: str, approval: dict[str, Any], code: str, **other: Any) -> Any:
    """The answer to a redemption for this app user."""
    body = {"code": code, "secret": approval["secret"], **other}
    path = f"/approvals/{approval['id']}/redeem"
    return site.api("POST", path, site.token(user), json=body)


def new_user() -> str:
    """A new app user."""
    return f"user-{secrets.token_hex(6)}"


def button(page: Page, name: str) -> Any:
    """The button with exactly this accessible name."""
    return page.get_by_role("button", name=name, exact=True)


def sign_in(person: Person, page: Page) -> None:
    """Signs in with an existing or a new passkey, if the page asks for it."""
    asked = button(page, CREATE).or_(button(page, ALLOW)).or_(button(page, SIGN_IN)).first
    asked.wait_for()
    if button(page, ALLOW).is_visible():
        return
    person.click(page, SIGN_IN if person.passkeys else CREATE)
    page.locator("#passkey").wait_for(state="detached")


def approve(person: Person, page: Page, cap: float | str | None = None) -> None:
    """Signs in if necessary and presses Allow. The cap is the app's proposal, or this many USD."""
    sign_in(person, page)
    wait_for_allow(page)
    if cap is not None:
        page.get_by_label(CAP, exact=True).fill(str(cap))
    person.click(page, ALLOW)


def wait_for_allow(page: Page) -> None:
    """Waits until a click on Allow counts. Without the page's script, which runs a little later
    than the page is shown, Allow leads to a second page."""
    page.locator("#allow [name=ready]").wait_for(state="attached")
    expect(button(page, ALLOW)).to_be_enabled()


def close(popup: Page) -> None:
    """Closes the window of an approval, like a person who has seen its page. A script of the page
    tells the service, so this first waits until the script has run."""
    popup.wait_for_load_state()
    popup.close()


class Held:
    """Holds the requests of a page that match a pattern, until :meth:`release`."""

    def __init__(self, page: Page, pattern: str) -> None:
        self._page = page
        self._routes: list[Route] = []
        page.route(pattern, lambda route: self._routes.append(route))

    def wait(self) -> None:
        """Waits until a request is held."""
        eventually(self._is_held)

    def _is_held(self) -> bool:
        self._page.wait_for_timeout(10)  # runs the handler of the route
        return bool(self._routes)

    def release(self) -> None:
        """Sends the first of the requests."""
        self.wait()
        self._routes.pop(0).continue_()


def result_text(page: Page) -> Any:
    """The text that the lab shows once a call has ended."""
    output = page.get_by_role("status")
    expect(output).not_to_have_text(re.compile('^("…"|"ready"|-)$'))
    return json.loads(output.inner_text())


def press(page: Page, name: str) -> Any:
    """Presses a button of the lab. Returns the text that it shows once the call has ended."""
    button(page, name).click()
    return result_text(page)


def open_lab(person: Person, site: Site) -> Page:
    """Opens the lab and waits until it is ready."""
    page = person.open(site.lab)
    expect(page.get_by_role("status")).to_have_text('"ready"')
    return page


def connect(person: Person, site: Site, cap: float | str | None = None) -> Page:
    """Connects this person's budget in the lab. Returns the lab's page."""
    page = open_lab(person, site)
    popup = person.popup(page, lambda: person.click(page, "Connect"))
    with popup.expect_event("close"):
        approve(person, popup, cap)
    assert result_text(page)["connected"] is True
    return page


def user_of(person: Person, site: Site) -> str:
    """The app user that this browser is signed in as."""
    cookies = {each["name"]: each["value"] for each in person.context.cookies(site.app)}
    return cookies["visitor"]


#: JavaScript: what has the focus, also inside a custom element.
FOCUSED = (
    "(() => { let at = document.activeElement;"
    " while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement; return at; })()"
)


def focused(page: Page) -> str:
    """The text of what has the focus."""
    return page.evaluate(f"({FOCUSED}.innerText || '').trim()")


def tab_to(page: Page, name: str) -> None:
    """Presses Tab until the button with this name has the focus, visibly."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if focused(page) == name:
            assert page.evaluate(f"getComputedStyle({FOCUSED}).outlineStyle") != "none"
            return
    raise AssertionError(f"Tab does not get to {name!r}")
