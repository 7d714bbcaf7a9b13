"""``wattfare.js`` and its two elements, in an app with a strict policy: only its own scripts and
styles, and ``Cross-Origin-Opener-Policy: same-origin``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from browsers import flow
from browsers.flow import DENY, approve, button, focused, tab_to, user_of
from browsers.people import Person, assert_accessible
from browsers.site import Site

CONNECT = "Connect AI budget"


def open_app(person: Person, site: Site) -> Page:
    """Opens the chat app, which has both elements."""
    page = person.open(site.app)
    expect(budget(page)).to_contain_text("No AI budget is connected.")
    return page


def the_button(page: Page) -> Any:
    return page.locator("wattfare-button").get_by_role("button")


def budget(page: Page) -> Any:
    return page.locator("wattfare-budget")


def expect_state(page: Page, state: str) -> None:
    for name in ("button", "budget"):
        expect(page.locator(f"wattfare-{name}")).to_have_attribute("data-state", state)


def connect(person: Person, page: Page) -> None:
    popup = person.popup(page, the_button(page).click)
    with popup.expect_event("close"):
        approve(person, popup)


def test_button_connects_under_a_strict_policy(person: Person, site: Site) -> None:
    page = open_app(person, site)
    connect(person, page)
    expect_state(page, "low")  # the whole cap is less than a dollar
    expect(the_button(page)).to_have_text("AI budget low: $0.001 left")
    expect(budget(page)).to_contain_text("$0.00 spent this month, $0.001 left")
    assert site.status(user_of(person, site))["connected"] is True
    assert_accessible(page)


def test_deny_without_a_handle_of_the_popup(person: Person, site: Site) -> None:
    page = open_app(person, site)
    popup = person.popup(page, the_button(page).click)
    flow.sign_in(person, popup)
    with popup.expect_event("close"):
        button(popup, DENY).click()
    expect(the_button(page)).to_have_text(CONNECT)
    assert site.status(user_of(person, site))["connected"] is False


def test_page_waits_for_a_slow_person_without_a_popup_handle(person: Person, site: Site) -> None:
    page = open_app(person, site)
    popup = person.popup(page, the_button(page).click)
    button(popup, flow.CREATE).wait_for()
    assert page.evaluate("document.hasFocus()")
    page.wait_for_timeout(2500)  # longer than it waits after the window is closed
    with popup.expect_event("close"):
        approve(person, popup)
    expect_state(page, "low")


def ask_for_status(page: Page) -> None:
    """Keeps what `connect()` returns in the page."""
    page.evaluate(
        """() => {
          const { wattfare } = document.querySelector("wattfare-button");
          const { connect } = wattfare;
          wattfare.connect = async () => {
            const status = await connect();
            document.body.dataset.connected = status.connected;
            return status;
          };
        }"""
    )


def test_focus_on_the_page_means_that_the_popup_was_left(person: Person, site: Site) -> None:
    page = open_app(person, site)
    ask_for_status(page)
    popup = person.popup(page, the_button(page).click)
    button(popup, flow.CREATE).wait_for()
    page.wait_for_timeout(1000)
    flow.close(popup)
    page.locator("h1").click()  # simulates the focus, which an automated page never loses
    expect(page.locator("body")).to_have_attribute("data-connected", "false")
    connect(person, page)  # and again
    expect_state(page, "low")


def test_closed_popup_is_noticed_without_its_handle(person: Person, site: Site) -> None:
    page = open_app(person, site)
    ask_for_status(page)
    popup = person.popup(page, lambda: the_button(page).press("Enter"))
    button(popup, flow.CREATE).wait_for()
    flow.close(popup)  # the page never gets the focus, so only the service can know
    expect(page.locator("body")).to_have_attribute("data-connected", "false")
    assert focused(page) == CONNECT
    connect(person, page)
    expect_state(page, "low")


def test_allow_counts_after_the_page_has_stopped_waiting(person: Person, site: Site) -> None:
    page = open_app(person, site)
    ask_for_status(page)
    popup = person.popup(page, the_button(page).click)
    flow.sign_in(person, popup)
    page.wait_for_timeout(1000)
    page.locator("h1").click()
    expect(page.locator("body")).to_have_attribute("data-connected", "false")
    with popup.expect_event("close"):
        approve(person, popup)
    expect_state(page, "low")
    assert site.status(user_of(person, site))["connected"] is True


def test_second_click_opens_the_window_again(person: Person, site: Site) -> None:
    page = open_app(person, site)
    lost = person.popup(page, the_button(page).click)
    button(lost, flow.CREATE).wait_for()
    page.wait_for_timeout(1000)
    again = person.popup(page, the_button(page).click)
    again.wait_for_url(lost.url)  # the same approval
    with again.expect_event("close"):
        approve(person, again)
    expect_state(page, "low")


def test_button_redirects_if_popups_are_blocked(person: Person, site: Site) -> None:
    person.context.add_init_script("window.open = () => null")
    page = open_app(person, site)
    the_button(page).click()
    page.wait_for_url(re.compile("/approve/"))
    approve(person, page)
    page.wait_for_url(f"{site.app}/")
    expect_state(page, "low")
    assert "approval" not in page.url
    assert page.evaluate("sessionStorage.length") == 0


def test_keyboard_alone_is_enough(person: Person, site: Site) -> None:
    page = open_app(person, site)
    tab_to(page, CONNECT)
    assert page.evaluate("document.activeElement.localName") == "wattfare-button"
    assert page.evaluate(f"getComputedStyle({flow.FOCUSED}).outlineStyle") == "solid"
    popup = person.popup(page, lambda: page.keyboard.press("Enter"))
    button(popup, flow.CREATE).wait_for()
    tab_to(popup, flow.CREATE)
    popup.keyboard.press("Enter")
    flow.wait_for_allow(popup)
    with popup.expect_event("close"):
        tab_to(popup, flow.ALLOW)
        popup.keyboard.press("Enter")
    expect_state(page, "low")


def test_keyboard_keeps_its_place(person: Person, site: Site) -> None:
    """No action on the elements loses the focus."""
    page = open_app(person, site)
    ask_for_status(page)

    def ask(answer: Callable[[Page], None], connected: str, text: str) -> None:
        page.evaluate("delete document.body.dataset.connected")
        popup = person.popup(page, lambda: page.keyboard.press("Enter"))
        with popup.expect_event("close"):
            answer(popup)
        expect(page.locator("body")).to_have_attribute("data-connected", connected)
        assert focused(page) == text

    def deny(popup: Page) -> None:
        flow.sign_in(person, popup)
        button(popup, DENY).click()

    def allow(cap: float) -> Callable[[Page], None]:
        return lambda popup: approve(person, popup, cap)

    tab_to(page, CONNECT)
    ask(deny, "false", CONNECT)
    ask(allow(5), "true", "AI budget: $5.00 left")
    tab_to(page, "Change")
    ask(deny, "true", "Change")
    ask(allow(20), "true", "Change")
    tab_to(page, "Stop")
    page.keyboard.press("Enter")
    expect_state(page, "connect")
    page.evaluate("new Promise(requestAnimationFrame)")  # when a hidden element loses the focus
    assert focused(page) == "No AI budget is connected."
    assert_accessible(page)


def test_stop_and_change(person: Person, site: Site) -> None:
    page = open_app(person, site)
    connect(person, page)
    expect_state(page, "low")
    popup = person.popup(page, budget(page).get_by_role("button", name="Change").click)
    with popup.expect_event("close"):
        approve(person, popup, cap=20)
    expect_state(page, "connected")
    expect(the_button(page)).to_have_text("AI budget: $20.00 left")
    budget(page).get_by_role("button", name="Stop").click()
    expect_state(page, "connect")
    expect(budget(page)).to_contain_text("No AI budget is connected.")
    assert site.status(user_of(person, site))["connected"] is False


# -- what the elements show


def answer_status(page: Page, **status: Any) -> None:
    """From now on, the service returns this status of the connection."""

    def answer(route: Route) -> None:
        if route.request.method == "OPTIONS":
            route.fallback()
            return
        headers = {"access-control-allow-origin": "*", "content-type": "application/json"}
        route.fulfill(headers=headers, body=json.dumps(status))

    page.route("**/api/v1/connections", answer)


def status_of(left: float | None, cap: float | None) -> dict[str, Any]:
    spent = 0.25 if left is None or cap is None else cap - left
    return {
        "connected": True,
        "limits": {"monthlyUsd": cap},
        "usage": {"monthlyUsd": spent},
        "remainingUsd": left,
    }


@pytest.mark.parametrize(
    ("left", "cap", "state", "text"),
    [
        (5, 20, "connected", "AI budget: $5.00 left"),
        (4, 20, "connected", "AI budget: $4.00 left"),
        (3.99, 20, "low", "AI budget low: $3.99 left"),
        (0.99, 1, "low", "AI budget low: $0.99 left"),
        (0, 20, "used_up", "AI budget used up: raise the cap"),
        (0, 0, "used_up", "AI budget used up: raise the cap"),
        (None, None, "connected", "AI budget: no cap"),
    ],
)
def test_elements_show_each_state(
    person: Person, site: Site, left: float | None, cap: float | None, state: str, text: str
) -> None:
    page = open_app(person, site)
    answer_status(page, **status_of(left, cap))
    # As htmx sends it: on any element.
    page.evaluate(
        """document.querySelector("h1").dispatchEvent(
            new CustomEvent("wattfare:refresh", { bubbles: true }))"""
    )
    expect_state(page, state)
    expect(the_button(page)).to_have_text(text)
    meter = budget(page).get_by_role("meter")
    if cap:
        expect(meter).to_have_accessible_name(re.compile("spent this month"))
        assert page.evaluate(
            "(m => [m.value, m.max])(document.querySelector('wattfare-budget').meter)"
        ) == pytest.approx([cap - left, cap])
    else:
        expect(meter).to_have_count(0)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert_accessible(page)


def test_refused_key_is_reconnected(person: Person, site: Site) -> None:
    person.expect_problem("status of 402")
    page = open_app(person, site)
    connect(person, page)
    expect_state(page, "low")
    error = {"code": "funding_invalid", "message": "No.", "manageUrl": f"{site.service}/budget"}
    page.route(
        "**/chat/completions",
        lambda route: route.fulfill(status=402, json={"error": error}),
    )
    page.get_by_label("Message").fill("Hello")
    page.get_by_role("button", name="Send").click()
    expect_state(page, "reconnect")
    expect(the_button(page)).to_have_text("Reconnect AI budget")
    manage_url = page.evaluate("document.querySelector('wattfare-button').wattfare.manageUrl")
    assert manage_url == f"{site.service}/budget"
    connect(person, page)
    expect_state(page, "low")
    assert focused(page) == "AI budget low: $0.001 left"


def test_partly_read_answer_refreshes_the_budget(person: Person, site: Site) -> None:
    page = open_app(person, site)
    connect(person, page)
    expect_state(page, "low")
    got = page.evaluate(
        """async () => {
          const { wattfare } = document.querySelector("wattfare-button");
          let refreshed = 0;
          window.addEventListener("wattfare:refresh", () => { refreshed += 1; });
          const ask = (signal) => wattfare.fetch("/api/wattfare/chat/completions", {
            method: "POST",
            headers: { "content-type": "application/json" },
            body: JSON.stringify({
              model: "wattfare/echo-slow", stream: true,
              messages: [{ role: "user", content: "one two three four five six" }],
            }),
            signal,
          });
          const until = async (count) => {
            for (let tries = 0; refreshed < count; tries += 1) {
              if (tries === 1000) throw new Error(`${refreshed} of ${count} refreshes`);
              await new Promise((next) => setTimeout(next, 10));
            }
          };
          const first = await ask();
          const reader = first.body.getReader();
          await reader.read();
          await reader.cancel();
          await until(1);
          const abort = new AbortController();
          const second = await ask(abort.signal);
          abort.abort();
          const failed = await second.body.getReader().read().catch((error) => error.name);
          await until(2);
          const third = await ask();
          const text = await third.text();
          await until(3);
          return [first.url, failed, text.includes("[DONE]"), refreshed];
        }"""
    )
    assert got == [f"{site.app}/api/wattfare/chat/completions", "AbortError", True, 3]


def test_unreachable_service_is_reported(person: Person, site: Site) -> None:
    person.expect_problem("ERR_FAILED")
    page = open_app(person, site)
    page.route("**/api/v1/connections", lambda route: route.abort())
    page.evaluate("window.dispatchEvent(new Event('wattfare:refresh'))")
    expect(budget(page).get_by_role("alert")).to_contain_text("No answer from localhost")


# -- the return page


def test_return_page_without_a_waiting_opener(person: Person, site: Site) -> None:
    page = person.open(f"{site.return_url}?approval=nothing&code=nothing")
    expect(page.get_by_role("status")).to_contain_text("Nothing was connected here")
    assert page.url == site.return_url
    assert_accessible(page)
