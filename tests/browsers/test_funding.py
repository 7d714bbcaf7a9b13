"""A person pays with their own key: from the app's button to a call with the key."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect
from support.fake_openrouter import FakeOpenRouter
from support.pace import Pace
from support.service import chat_body

from browsers import flow, screenshots
from browsers.flow import ALLOW, approve, button, open_lab, result_text, user_of
from browsers.people import Person, assert_accessible, assert_fits
from browsers.site import Site, run_site
from wattfare_mw.cli.demo_chat import MODEL

NewPerson = Callable[..., Person]
ADD = "Add a way to pay"


@pytest.fixture(scope="module")
def funded_site(
    tmp_path_factory: pytest.TempPathFactory, openrouter: FakeOpenRouter
) -> Iterator[Site]:
    options = (*openrouter.options, "--price", f"{MODEL}=1/1")
    with run_site(tmp_path_factory.mktemp("funded"), *options) as site:
        yield site


def open_approval(person: Person, site: Site) -> tuple[Page, Page]:
    """Opens the app's page and the popup with the approval, signed in."""
    page = open_lab(person, site)
    popup = person.popup(page, button(page, "Connect").click)
    flow.sign_in(person, popup)
    button(popup, ALLOW).wait_for()
    return page, popup


def call(site: Site, user: str) -> tuple[int, str]:
    """Makes a call of this user. Returns its status and the error's code."""
    answer = site.api(
        "POST",
        "/chat/completions",
        site.keys.secret_key,
        json=chat_body("hello", model="fake/model", max_tokens=5),
        headers={"x-wattfare-user": user},
    )
    return answer.status_code, answer.json().get("error", {}).get("code", "")


def test_connecting_through_openrouter_and_calling(
    person: Person, funded_site: Site, router: FakeOpenRouter
) -> None:
    router.person("ada")
    page, popup = open_approval(person, funded_site)
    expect(popup.get_by_text("Add a way to pay first.")).to_be_visible()
    assert_accessible(popup)
    popup.get_by_role("link", name=ADD).click()
    assert_accessible(popup)
    popup.get_by_label("Monthly limit of the key").fill("20")
    button(popup, "Connect OpenRouter").click()
    button(popup, "Authorize").click()
    popup.wait_for_url(re.compile("/approve/"))
    with popup.expect_event("close"):
        approve(person, popup, cap=3)
    assert result_text(page)["limits"] == {"monthlyUsd": 3}
    user = user_of(person, funded_site)
    assert call(funded_site, user) == (200, "")
    [key] = router.keys_of("ada")
    assert router.upstream.calls[-1].headers["authorization"] == f"Bearer {key.key}"


def test_key_without_a_limit_leads_back_to_the_request(
    person: Person, funded_site: Site, router: FakeOpenRouter
) -> None:
    router.person("ada")
    router.grants_limits = False
    page, popup = open_approval(person, funded_site)
    popup.get_by_role("link", name=ADD).click()
    popup.get_by_label("Monthly limit of the key").fill("20")
    button(popup, "Connect OpenRouter").click()
    button(popup, "Authorize").click()
    expect(popup.get_by_text("OpenRouter gave the key no limit")).to_be_visible()
    popup.get_by_role("link", name="Back to the app's request").click()
    with popup.expect_event("close"):
        approve(person, popup)
    assert result_text(page)["connected"] is True


def test_refused_own_key_and_a_valid_one(
    person: Person, funded_site: Site, router: FakeOpenRouter
) -> None:
    router.person("ada")
    good = router.new_key("ada")
    page, popup = open_approval(person, funded_site)
    popup.get_by_role("link", name=ADD).click()
    person.expect_problem("status of 400")
    popup.get_by_label("Key", exact=True).fill("sk-or-v1-unknown")
    button(popup, "Add the key").click()
    expect(popup.get_by_role("alert")).to_contain_text("refuses this key")
    popup.get_by_label("Key", exact=True).fill(good.key)
    button(popup, "Add the key").click()
    popup.wait_for_url(re.compile("/approve/"))
    with popup.expect_event("close"):
        approve(person, popup)
    assert result_text(page)["connected"] is True
    assert call(funded_site, user_of(person, funded_site)) == (200, "")


def callback(popup: Page, router: FakeOpenRouter, person: str) -> str:
    """The URL that OpenRouter redirects to, before the browser opens it."""
    popup.get_by_role("link", name=ADD).click()
    button(popup, "Connect OpenRouter").click()
    button(popup, "Authorize").wait_for()
    return router.allow(popup.url, person)


def test_failed_openrouter_callback_leads_back_to_the_request(
    person: Person, funded_site: Site, router: FakeOpenRouter
) -> None:
    router.person("ada")
    page, popup = open_approval(person, funded_site)
    person.expect_problem("status of 400")
    popup.goto(callback(popup, router, "ada").partition("&code=")[0] + "&code=wrong")
    expect(popup.get_by_text("did not accept the authorization code")).to_be_visible()
    assert_accessible(popup)
    popup.get_by_role("link", name="Ways to pay").click()
    button(popup, "Connect OpenRouter").click()
    button(popup, "Authorize").click()
    popup.wait_for_url(re.compile("/approve/"))
    with popup.expect_event("close"):
        approve(person, popup)
    assert result_text(page)["connected"] is True


def test_refused_openrouter_is_connected_again_in_the_popup(
    person: Person, funded_site: Site, router: FakeOpenRouter
) -> None:
    router.person("ada")
    page, popup = open_approval(person, funded_site)
    popup.get_by_role("link", name=ADD).click()
    button(popup, "Connect OpenRouter").click()
    button(popup, "Authorize").click()
    popup.wait_for_url(re.compile("/approve/"))
    with popup.expect_event("close"):
        approve(person, popup)
    router.keys_of("ada")[0].revoked = True
    user = user_of(person, funded_site)
    assert call(funded_site, user) == (402, "funding_invalid")
    popup = person.popup(page, button(page, "Connect").click)
    again = button(popup, "Connect OpenRouter again")
    again.wait_for()
    assert_accessible(popup)
    again.click()
    button(popup, "Authorize").click()
    popup.wait_for_url(re.compile("/approve/"))
    with popup.expect_event("close"):
        approve(person, popup)
    assert call(funded_site, user) == (200, "")


READ_A_STREAM = """async (model) => {
  const answer = await fetch("/api/wattfare/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, stream: true, messages: [{ role: "user", content: "hello" }] }),
  });
  window.streamed = (async () => {
    const text = await answer.text();
    return { text, at: performance.timeOrigin + performance.now() };
  })();
  return answer.status;
}"""


def test_removal_ends_a_stream_in_the_page(
    person: Person, funded_site: Site, router: FakeOpenRouter
) -> None:
    router.person("ada")
    page, popup = open_approval(person, funded_site)
    popup.get_by_role("link", name=ADD).click()
    popup.get_by_label("Key", exact=True).fill(router.new_key("ada").key)
    button(popup, "Add the key").click()
    with popup.expect_event("close"):
        approve(person, popup)
    router.hang_after = 2
    assert page.evaluate(READ_A_STREAM, MODEL) == 200
    assert router.streaming.acquire(timeout=20)
    funding = person.open(f"{funded_site.service}/funding")
    funding.get_by_role("link", name="Remove").click()
    with Pace() as pace:
        with funding.expect_request(re.compile("done=removed")):
            button(funding, "Remove").click()
        removed = time.time()
        ended = page.evaluate("window.streamed")
        assert pace.on_idle(ended["at"] / 1000 - removed) < 1.5
    assert '"error"' in ended["text"]
    assert "[DONE]" not in ended["text"]
    assert call(funded_site, user_of(person, funded_site))[0] in (402, 403)


def test_funding_of_an_app_is_changed(
    person: Person, funded_site: Site, router: FakeOpenRouter
) -> None:
    router.person("ada")
    _page, popup = open_approval(person, funded_site)
    popup.get_by_role("link", name=ADD).click()
    popup.get_by_label("Key", exact=True).fill(router.new_key("ada").key)
    button(popup, "Add the key").click()
    with popup.expect_event("close"):
        approve(person, popup)
    budget = person.open(f"{funded_site.service}/budget")
    budget.get_by_role("link", name="Change", exact=True).click()
    budget.get_by_role("link", name=ADD).click()
    other = router.new_key("ada")
    budget.get_by_label("Key", exact=True).fill(other.key)
    budget.get_by_label("Name").fill("the other")
    button(budget, "Add the key").click()
    budget.wait_for_url(re.compile("/budget/connections/"))
    budget.get_by_role("radio", name="the other").check()
    assert_accessible(budget)
    button(budget, "Save").click()
    expect(budget.get_by_text("From now on, your choice pays.")).to_be_visible()
    assert call(funded_site, user_of(person, funded_site)) == (200, "")
    assert other.used == router.cost


@pytest.mark.parametrize("fault", ["state", "cookie", "code", "verifier", "replayed"])
def test_forged_or_replayed_callback_adds_nothing(
    person: Person, funded_site: Site, router: FakeOpenRouter, fault: str
) -> None:
    router.person("ada")
    _page, popup = open_approval(person, funded_site)
    person.expect_problem("status of [45]")
    url = callback(popup, router, "ada")
    given = parse_qs(urlsplit(url).query)
    if fault == "state":
        url = url.replace(given["state"][0], "x" * 43)
    elif fault == "cookie":
        person.context.clear_cookies(name=re.compile("openrouter"))
    elif fault == "code":
        url = url.replace(given["code"][0], "another-code")
    elif fault == "verifier":  # the code was issued for another challenge
        router.codes[given["code"][0]].challenge = "another-challenge"
    elif fault == "replayed":
        popup.goto(url)
        popup.wait_for_url(re.compile("/approve/"))
    page = person.open(url)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.get_by_role("link", name="Ways to pay").click()
    keys = router.keys_of("ada")
    assert len(keys) == (1 if fault == "replayed" else 0)
    if not keys:
        expect(page.get_by_text("You have not added a way to pay yet.")).to_be_visible()


def test_another_payer_cannot_use_a_callback(
    new_person: NewPerson, funded_site: Site, router: FakeOpenRouter
) -> None:
    router.person("mallory")
    mallory, victim = new_person(), new_person()
    _page, popup = open_approval(mallory, funded_site)
    url = callback(popup, router, "mallory")
    open_approval(victim, funded_site)
    victim.expect_problem("status of 4")
    page = victim.open(url)
    page.goto(f"{funded_site.service}/funding")
    expect(page.get_by_text("You have not added a way to pay yet.")).to_be_visible()
    assert not router.keys_of("mallory")


def test_refused_key_is_replaced(person: Person, funded_site: Site, router: FakeOpenRouter) -> None:
    router.person("ada")
    key = router.new_key("ada")
    page, popup = open_approval(person, funded_site)
    popup.get_by_role("link", name=ADD).click()
    popup.get_by_label("Key", exact=True).fill(key.key)
    button(popup, "Add the key").click()
    with popup.expect_event("close"):
        approve(person, popup)
    assert result_text(page)["connected"] is True
    user = user_of(person, funded_site)
    key.revoked = True
    assert call(funded_site, user) == (402, "funding_invalid")
    budget = person.open(f"{funded_site.service}/budget")
    expect(budget.get_by_text("The provider refuses this key, so calls fail.")).to_be_visible()
    assert_accessible(budget)
    budget.get_by_role("link", name="Change ways to pay").first.click()
    budget.get_by_text("Replace the key", exact=True).click()
    budget.get_by_label("New key").fill(router.new_key("ada").key)
    button(budget, "Replace").click()
    expect(budget.get_by_text("You can pay with this from now on.")).to_be_visible()
    assert call(funded_site, user) == (200, "")


def test_picture_of_each_page_with_ways_to_pay(
    person: Person, funded_site: Site, router: FakeOpenRouter
) -> None:
    router.person("ada")
    _page, popup = open_approval(person, funded_site)
    popup.get_by_role("link", name=ADD).click()
    for name in ("work", "home"):
        popup.get_by_label("Key", exact=True).fill(router.new_key("ada").key)
        popup.get_by_label("Name").fill(name)
        button(popup, "Add the key").click()
        popup.wait_for_url(re.compile("/approve/"))
        popup.get_by_role("link", name=ADD).click()

    def look(page: Page, name: str) -> None:
        screenshots.take(page, name)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert_accessible(page)
        assert_fits(page)

    popup.get_by_role("link", name="Back to the app's request").click()
    flow.wait_for_allow(popup)
    look(popup, "approve-funding")
    page = person.open(f"{funded_site.service}/funding")
    button(page, "Add the key").wait_for()
    look(page, "funding")
    page.get_by_role("link", name="Remove").first.click()
    button(page, "Remove").wait_for()
    look(page, "funding-remove")
