"""A person at a browser: their own cookies, a passkey device, and a check of the console."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, CDPSession, ConsoleMessage, Error, Page, Request, expect

#: Milliseconds that one step may take in a slow run.
PATIENCE = 20_000
expect.set_options(timeout=PATIENCE)
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}
#: The size of a window of 1280 by 1024 pixels at 400% zoom.
ZOOMED = {"width": 320, "height": 256}
#: A platform authenticator, such as a fingerprint reader, that confirms at once.
DEVICE = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}
#: Hosts that a page may contact: nothing leaves this machine.
LOCAL = {"localhost", "127.0.0.1"}


@dataclass
class Problem:
    """A complaint of the browser."""

    text: str
    page: str


@dataclass
class Person:
    """One person with one browser profile.

    The person's passkeys are available on every page and popup that :meth:`open` and :meth:`popup`
    return. At the end, the test fails if there was an error in the console, an uncaught exception
    or a request to another machine, unless :meth:`expect_problem` names it.

    Args:
        browser: a running one.
        options: of Playwright's ``new_context``, such as ``java_script_enabled=False``.
    """

    browser: Browser
    options: dict[str, Any] = field(default_factory=dict)
    passkeys: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    clicks: int = 0
    _expected: list[re.Pattern[str]] = field(default_factory=list)
    _devices: dict[Page, tuple[CDPSession, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = {"viewport": DESKTOP, "reduced_motion": "reduce", **self.options}
        self.context = self.browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE)
        self.context.on("console", self._note_console)
        self.context.on("weberror", lambda error: self._note(str(error.error), error.page))
        self.context.on("request", self._note_request)

    # -- pages

    def open(self, url: str) -> Page:
        """Opens this page in a new tab."""
        page = self.context.new_page()
        self._prepare(page)
        page.goto(url)
        return page

    def popup(self, page: Page, act: Callable[[], Any]) -> Page:
        """The popup that opens when ``act`` is done on the page."""
        with page.expect_popup() as opened:
            act()
        self._prepare(opened.value)
        return opened.value

    def click(self, page: Page, name: str, role: Any = "button") -> None:
        """Clicks the element with exactly this accessible name, and counts the click."""
        page.get_by_role(role, name=name, exact=True).click()
        self.clicks += 1

    # -- passkeys

    def _prepare(self, page: Page) -> None:
        """Gives this page the device. An event handler for new pages would run concurrently with
        the test, which could need the device earlier."""
        session = self.context.new_cdp_session(page)
        session.send("WebAuthn.enable")
        device = session.send("WebAuthn.addVirtualAuthenticator", {"options": DEVICE})
        identifier = device["authenticatorId"]
        for passkey in self.passkeys.values():
            entry = {"authenticatorId": identifier, "credential": passkey}
            session.send("WebAuthn.addCredential", entry)
        # Both events contain the whole credential, with its usage count.
        session.on("WebAuthn.credentialAdded", self._keep)
        session.on("WebAuthn.credentialAsserted", self._keep)
        self._devices[page] = session, identifier

    def _keep(self, event: dict[str, Any]) -> None:
        credential = event["credential"]
        self.passkeys[credential["credentialId"]] = credential

    def take_another_device(self, page: Page) -> None:
        """Gives this page another device without a passkey. The former device is lost."""
        session, identifier = self._devices.pop(page)
        session.send("WebAuthn.removeVirtualAuthenticator", {"authenticatorId": identifier})
        session.detach()
        self.passkeys.clear()
        self._prepare(page)

    def refuse_passkeys(self, page: Page) -> None:
        """From now on, the person cancels each authenticator prompt on this page."""
        session, identifier = self._devices[page]
        params = {"authenticatorId": identifier, "isUserVerified": False}
        session.send("WebAuthn.setUserVerified", params)

    # -- what must not happen

    def expect_problem(self, pattern: str) -> None:
        """Ignores console messages that match."""
        self._expected.append(re.compile(pattern))

    def unexpected(self) -> list[Problem]:
        """The problems that were not expected."""
        return [
            problem
            for problem in self.problems
            if not any(pattern.search(problem.text) for pattern in self._expected)
        ]

    def _note(self, text: str, page: Page | None) -> None:
        self.problems.append(Problem(text, page.url if page else ""))

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            where = message.location.get("url", "")
            self._note(f"{message.text} ({where})", message.page)

    def _note_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in LOCAL:
            self._note(f"a request to another machine: {request.url}", None)

    def close(self) -> None:
        """Closes all pages. Chromium may never close a page that is just about to show another
        origin's page (Playwright's issue 42366), so each first shows an empty page."""
        for page in self.context.pages:
            with suppress(Error):  # if the page closes itself or goes elsewhere meanwhile
                page.goto("about:blank")
        self.context.close()


# -- properties of a page


def accessibility_faults(page: Page) -> list[str]:
    """The faults that axe-core finds on this page."""
    results = Axe().run(page)
    return [
        f"{fault['id']}: {fault['help']}: {[node['target'] for node in fault['nodes']]}"
        for fault in results.response["violations"]
    ]


def assert_accessible(page: Page) -> None:
    """Checks that axe-core finds no fault on this page."""
    assert accessibility_faults(page) == [], page.url


def overflow(page: Page) -> int:
    """By how many CSS pixels the page is wider than its window; 0 is correct."""
    return page.evaluate(
        "Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth)"
    )


def assert_fits(page: Page) -> None:
    """Checks that this page is not wider than a phone, or than a window at 400% zoom."""
    for viewport in (PHONE, ZOOMED):
        page.set_viewport_size(viewport)
        assert overflow(page) == 0, (page.url, viewport)
