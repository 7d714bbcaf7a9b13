"""The tools of these tests work: they notice an error in the console, and provide passkeys on each
page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import chromium
from support.servers import werkzeug_server

from browsers import screenshots
from browsers.people import PHONE, Person, accessibility_faults, assert_accessible, overflow

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><main><h1>A page</h1>
<button onclick="window.open('/')">Open</button>
<button onclick="make()">Create a passkey</button> <button onclick="use()">Use it</button>
<output></output></main><script>
const say = (what) => document.querySelector("output").textContent = what;
const bytes = new Uint8Array(32);
async function make() {
  const made = await navigator.credentials.create({publicKey: {
    challenge: bytes, rp: {name: "A"}, user: {id: bytes, name: "a", displayName: "a"},
    pubKeyCredParams: [{type: "public-key", alg: -7}],
    authenticatorSelection: {residentKey: "required", userVerification: "required"},
  }});
  say("made " + made.id);
}
async function use() {
  try {
    const used = await navigator.credentials.get(
      {publicKey: {challenge: bytes, userVerification: "required"}});
    say("used " + used.id);
  } catch (error) { say(error.name); }
}
</script>"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(PAGE) as address:
        yield address


@contextmanager
def serving(html: str) -> Iterator[str]:
    import flask

    app = flask.Flask(__name__)
    app.add_url_rule("/", "page", lambda: html)
    with werkzeug_server(app) as address:
        yield f"http://localhost:{address[1]}/"


def test_passkey_of_a_page_works_in_its_popup(person: Person, url: str) -> None:
    page = person.open(url)
    page.get_by_role("button", name="Create a passkey").click()
    page.get_by_text("made ").wait_for()
    popup = person.popup(page, page.get_by_role("button", name="Open").click)
    popup.get_by_role("button", name="Use it").click()
    popup.get_by_text("used ").wait_for()
    assert popup.get_by_role("status").inner_text() == page.get_by_role(
        "status"
    ).inner_text().replace("made", "used")


def test_person_can_cancel_a_passkey_prompt(person: Person, url: str) -> None:
    page = person.open(url)
    page.get_by_role("button", name="Create a passkey").click()
    page.get_by_text("made ").wait_for()
    person.refuse_passkeys(page)
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("NotAllowedError").wait_for()


@pytest.mark.parametrize(
    ("script", "event"),
    [
        ("console.error('oh')", "console"),
        ("setTimeout(() => { throw new Error('oh') })", "weberror"),
    ],
)
def test_error_in_a_page_is_noticed(browser: Any, url: str, script: str, event: Any) -> None:
    person = Person(browser)
    page = person.open(url)
    with person.context.expect_event(event):
        page.evaluate(script)
    person.close()
    assert [problem.text for problem in person.unexpected() if "oh" in problem.text]


def test_request_to_another_machine_is_noticed(browser: Any, url: str) -> None:
    person = Person(browser)
    page = person.open(url)
    page.evaluate("fetch('http://example.invalid/').catch(() => {})")
    person.close()
    assert any("another machine" in problem.text for problem in person.unexpected())


def test_axe_finds_a_fault(person: Person, url: str) -> None:
    page = person.open(url)
    assert_accessible(page)
    page.evaluate("document.querySelector('h1').after(new Image())")
    assert any("image-alt" in fault for fault in accessibility_faults(page))


def test_too_wide_page_is_noticed(new_person: Callable[..., Person], url: str) -> None:
    page = new_person(viewport=PHONE).open(url)
    assert overflow(page) == 0
    page.evaluate("document.querySelector('main').style.width = '400px'")
    assert overflow(page) > 0


def test_pictures_are_taken(person: Person, url: str, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("WATTFARE_SCREENSHOTS", str(tmp_path))
    screenshots.take(person.open(url), "page")
    made = {path.name: path.read_bytes()[8:12] for path in tmp_path.iterdir()}
    names = [f"page-{size}-{scheme}.webp" for size in screenshots.SIZES for scheme in SCHEMES]
    assert made == dict.fromkeys(names, b"WEBP")


SCHEMES = ("light", "dark")


def test_browser_path_in_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    assert chromium.find() is None
    assert chromium._find_or_install() is None  # a wrong path does not trigger an installation
    monkeypatch.setenv("CHROMIUM", sys.executable)
    assert chromium.find() == sys.executable
