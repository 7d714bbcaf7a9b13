"""`wattfare demo --web` in each framework: chat up to the cap, raise it, continue, stop."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from support.pace import Pace
from support.patience import PATIENCE
from support.service import environment, obey_ctrl_c

from browsers import screenshots
from browsers.flow import STOP, approve, button
from browsers.people import Person, assert_accessible, assert_fits
from wattfare_mw.cli.demo_chat import FRAMEWORKS

#: 60 words at $0.000003 each: three of these cost more than half of the demo's cap.
LONG = " ".join(f"word{number}" for number in range(60))


@contextmanager
def running_demo(*options: str) -> Iterator[str]:
    """The URL of the chat app, the only URL that the demo prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wattfare_mw.cli", "demo", "--web", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        preexec_fn=obey_ctrl_c,
    )
    assert process.stdout is not None
    try:
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C stops it" in line:
                break
        found = re.findall(r"http://localhost:\d+\S*", "".join(lines))
        assert len(found) == 1, lines
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE)
        process.stdout.close()
    assert code == 0


@pytest.fixture(scope="module", params=FRAMEWORKS)
def demo(request: pytest.FixtureRequest) -> Iterator[str]:
    options = [] if request.param == "flask" else ["--framework", request.param]
    with running_demo(*options) as url:
        yield url


def test_demo_from_the_first_chat_to_stop(person: Person, demo: str) -> None:
    person.expect_problem("status of 402")
    page = person.open(demo)

    send(page, "Hello out there")  # not connected
    expect(page.locator("#notice")).to_contain_text("Connect")

    popup = person.popup(page, connect_button(page).click)
    with popup.expect_event("close"):
        approve(person, popup)
    seen = [left(page)]
    assert seen == [0.001]

    start(page, " ".join(["word"] * 20))
    expect(answers(page).last).to_contain_text("word word")
    falling = [page.evaluate("document.querySelector('#left').value") for _ in range(2)]
    expect(page.locator("#ask")).to_have_attribute("aria-busy", "false")
    expect(bar(page)).not_to_contain_text("$0.001 left")
    at_last = page.evaluate("document.querySelector('#left').value")
    assert 0.001 > falling[0] >= falling[1] >= at_last
    assert at_last == left(page)
    while "reached" not in page.locator("#notice").inner_text():
        assert len(seen) < 20, seen
        send(page, LONG)
        expect(bar(page)).not_to_contain_text("$0.001 left")
        seen.append(left(page))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] / 2

    # Raise the cap and continue.
    popup = person.popup(page, button(page, "Raise the cap").click)
    with popup.expect_event("close"):
        approve(person, popup, cap=1)
    send(page, "And on we go")
    expect(answers(page).last).to_contain_text("And on we go")
    expect(bar(page)).to_contain_text("$1.00 left")

    # Stop within an answer.
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="My budget").click()
    spending = opened.value
    page.bring_to_front()
    start(page, " ".join(["tick"] * 400))  # it would take 20 seconds
    expect(answers(page).last).to_contain_text("tick tick tick")
    expect(page.get_by_role("meter", name="Left this month")).to_be_in_viewport()
    with Pace() as pace:
        button(spending, STOP).first.click()
        began = time.monotonic()
        expect(page.locator("#notice")).to_contain_text("stopped")
        assert pace.on_idle(time.monotonic() - began) < 3
    expect(spending.get_by_text("Stopped.")).to_be_visible()
    words = answers(page).last.inner_text()
    page.wait_for_timeout(300)
    assert answers(page).last.inner_text() == words


def test_axe_finds_no_fault_on_the_demo(person: Person, demo: str) -> None:
    page = person.open(demo)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert_accessible(page)
    assert_fits(page)


def test_picture_of_the_demo(person: Person) -> None:
    with running_demo() as url:
        page = person.open(url)
        popup = person.popup(page, connect_button(page).click)
        with popup.expect_event("close"):
            approve(person, popup)
        send(page, "Who pays for this answer? I do, and I can see what it costs.")
        screenshots.take(page, "demo")


# -- the chat


def connect_button(page: Page) -> Any:
    return page.locator("wattfare-button").get_by_role("button").first


def answers(page: Page) -> Any:
    return page.locator("#log p[data-role=assistant]")


def start(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def send(page: Page, text: str) -> None:
    """Sends a message and waits for the end of its answer."""
    start(page, text)
    expect(page.locator("#ask")).to_have_attribute("aria-busy", "false", timeout=30_000)


def bar(page: Page) -> Any:
    return page.locator("wattfare-budget").get_by_role("status")


def left(page: Page) -> float:
    """The remaining USD that the page shows."""
    expect(bar(page)).to_contain_text("left")
    found = re.search(r"\$([\d.]+) left", bar(page).inner_text())
    assert found is not None
    return float(found[1])
