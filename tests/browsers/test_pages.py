"""Each page as it looks to axe-core, on a phone, at 400% zoom, and without JavaScript."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect

from browsers import flow, screenshots
from browsers.flow import ALLOW, DENY, allow, ask, button, new_user, redeem, tab_to
from browsers.people import Person, assert_accessible, assert_fits
from browsers.site import Site

NewPerson = Callable[..., Person]
#: The highest number of bytes of a page with everything that it loads.
LARGEST_PAGE = 30_000
#: The pages that :func:`walk` opens. `test_funding.py` has those with ways to pay.
PAGES = {
    "return",
    "sign-in",
    "approve-sign-in",
    "approve",
    "approve-grant",
    "approve-confirm",
    "approve-over",
    "budget",
    "budget-calls",
    "budget-connections",
    "budget-passkeys",
    "budget-delete",
    "budget-ended",
    "budget-deleted",
    "recovery-codes",
    "error",
}


def walk(person: Person, site: Site, look: Callable[[Page, str], Any]) -> None:
    """Opens every page in the order in which a person sees it."""
    person.expect_problem("status of 4")  # a page with a refusal
    user = new_user()
    approval = ask(site, user, monthlyUsd=5)
    page = person.open(site.return_url)
    look(page, "return")
    page.goto(f"{site.service}/budget")
    button(page, flow.CREATE).wait_for()
    look(page, "sign-in")
    page.goto(approval["url"])
    button(page, flow.CREATE).wait_for()
    look(page, "approve-sign-in")
    flow.sign_in(person, page)
    look_at_approval(page, look, "approve")
    code = allow(person, site, page)
    assert redeem(site, user, approval, code).status_code == 200
    chat(site, user)

    page.goto(ask_for_grant(site)["url"])
    look_at_approval(page, look, "approve-grant")
    page.locator("#allow [name=ready]").evaluate("(field) => field.remove()")  # as without a script
    button(page, ALLOW).click()
    expect(page).to_have_title(re.compile("^Confirm"))
    look_at_approval(page, look, "approve-confirm")
    page.goto(approval["url"])
    look(page, "approve-over")

    page.goto(f"{site.service}/budget")
    button(page, flow.STOP).wait_for()
    look(page, "budget")
    for path in links(page):
        page.goto(f"{site.service}{path}")
        words = re.sub(r"[0-9a-f]{32}", "", path.partition("?")[0])  # ids are not a part of a name
        look(page, re.sub(r"\W+", "-", words).strip("-"))

    page.goto(f"{site.service}/budget")
    button(page, "New recovery codes").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Your recovery codes")
    look(page, "recovery-codes")
    page.goto(f"{site.service}/budget")
    button(page, flow.STOP).first.click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    page.goto(f"{site.service}/budget/ended")
    look(page, "budget-ended")
    page.goto(f"{site.service}/budget/nothing")
    look(page, "error")
    page.goto(f"{site.service}/budget/delete")
    page.get_by_role("checkbox").check()
    button(page, "Delete my data").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Your data is deleted")
    look(page, "budget-deleted")


def look_at_approval(page: Page, look: Callable[[Page, str], Any], name: str) -> None:
    flow.wait_for_allow(page)
    look(page, name)


def ask_for_grant(site: Site) -> dict[str, Any]:
    body = {"returnUrl": site.return_url, "requests": 3, "maxUsd": 0.5}
    headers = {"origin": site.app}
    answer = site.api("POST", "/approvals", site.keys.publishable_key, json=body, headers=headers)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def chat(site: Site, user: str) -> None:
    """Fills the budget page with content."""
    body = {"model": "wattfare/echo", "messages": [{"role": "user", "content": "Hello out there"}]}
    headers = {"x-wattfare-user": user}
    answer = site.api("POST", "/chat/completions", site.keys.secret_key, json=body, headers=headers)
    assert answer.status_code == 200, answer.text


def links(page: Page) -> list[str]:
    """The service's pages that this page links to, once each."""
    found = page.evaluate(
        "[...document.querySelectorAll('a[href]')].map((a) => a.getAttribute('href'))"
    )
    ours = [path.split("#")[0] for path in found if path.startswith("/")]
    return [
        path
        for path in dict.fromkeys(ours)
        if path not in ("", "/", "/budget") and "export" not in path and not path.endswith(".csv")
    ]


def test_axe_finds_no_fault_on_any_page(person: Person, site: Site) -> None:
    seen: list[str] = []

    def look(page: Page, name: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert_accessible(page)
        page.emulate_media(color_scheme="light")
        seen.append(name)

    walk(person, site, look)
    assert set(seen) == PAGES


def test_no_page_is_wider_than_its_window(person: Person, site: Site) -> None:
    walk(person, site, lambda page, _: assert_fits(page))


def test_no_page_is_large(person: Person, site: Site) -> None:
    """The size includes style sheet and scripts."""
    sizes: dict[str, int] = {}

    def look(page: Page, name: str) -> None:
        page.wait_for_load_state("networkidle")
        sizes[name] = page.evaluate(
            """["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind))
                .reduce((sum, entry) => sum + entry.decodedBodySize, 0)"""
        )

    walk(person, site, look)
    assert min(sizes.values()) > 1000, sizes
    assert max(sizes.values()) <= LARGEST_PAGE, sizes


def test_picture_of_every_page(person: Person, site: Site) -> None:
    walk(person, site, lambda page, name: screenshots.take(page, name))


# -- without JavaScript


def test_allow_without_javascript_has_a_second_page(new_person: NewPerson, site: Site) -> None:
    plain, user = signed_in_without_javascript(new_person, site)
    approval = ask(site, user, monthlyUsd=2)
    page = plain.open(approval["url"])
    page.get_by_label(flow.CAP, exact=True).fill("3")
    button(page, ALLOW).click()
    expect(page).to_have_title(re.compile("^Confirm"))  # nothing is decided yet
    assert button(page, DENY).is_visible()
    with page.expect_request(re.compile(r"[?&]code=")) as returned:
        button(page, ALLOW).click()
    code = re.search(r"code=([^&]+)", returned.value.url)
    assert code is not None
    answer = redeem(site, user, approval, code[1])
    assert answer.json()["limits"] == {"monthlyUsd": 3}


def test_deny_and_stop_without_javascript(new_person: NewPerson, site: Site) -> None:
    plain, user = signed_in_without_javascript(new_person, site)
    page = plain.open(ask(site, user)["url"])
    with page.expect_request(re.compile(r"[?&]denied=1")):
        button(page, DENY).click()
    assert site.status(user)["connected"] is True  # unchanged
    budget = plain.open(f"{site.service}/budget")
    button(budget, flow.STOP).click()
    expect(budget.get_by_text("Stopped.")).to_be_visible()
    assert site.status(user)["connected"] is False


def signed_in_without_javascript(new_person: NewPerson, site: Site) -> tuple[Person, str]:
    """A person without JavaScript, and an app user whom they pay for. They signed in with
    JavaScript, because a passkey needs it."""
    known, user = new_person(), new_user()
    approval = ask(site, user, monthlyUsd=1)
    code = allow(known, site, known.open(approval["url"]))
    assert redeem(site, user, approval, code).status_code == 200
    state = known.context.storage_state()
    return new_person(java_script_enabled=False, storage_state=state), user


def test_sign_in_without_javascript_says_what_is_needed(new_person: NewPerson, site: Site) -> None:
    page = new_person(java_script_enabled=False).open(f"{site.service}/budget")
    assert "JavaScript" in page.locator("main").inner_text()


# -- the keyboard


def test_keyboard_alone_changes_and_stops_an_app(person: Person, site: Site) -> None:
    user = new_user()
    approval = ask(site, user, monthlyUsd=1)
    page = person.open(approval["url"])
    assert redeem(site, user, approval, allow(person, site, page)).status_code == 200
    page.goto(f"{site.service}/budget")
    tab_to(page, "Change")
    page.keyboard.press("Enter")
    expect(page.get_by_label(flow.CAP, exact=True)).to_be_visible()
    tab_to(page, "Save")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The cap was changed.")).to_be_visible()
    tab_to(page, flow.STOP)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Stopped.")).to_be_visible()
    assert site.status(user)["connected"] is False


# -- Allow is delayed


def test_allow_becomes_active_half_a_second_after_the_focus(person: Person, site: Site) -> None:
    page = person.open(ask(site, new_user())["url"])
    page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
            const allow = [...document.querySelectorAll("button")]
                .find((each) => each.innerText === "Allow");
            window.wasActive = allow ? !allow.disabled : null;
            if (allow) new MutationObserver(() => {
                if (!allow.disabled) window.waited ??= performance.now();
            }).observe(allow, {attributes: true});
        })"""
    )
    flow.sign_in(person, page)
    expect(button(page, ALLOW)).to_be_enabled()
    page.wait_for_function("window.waited")
    assert page.evaluate("window.wasActive") is False
    began = page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive")
    assert page.evaluate("window.waited") - began >= 490
