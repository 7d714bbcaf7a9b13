"""A person at a browser: cookies of their own, a passkey device, and a look at the console."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, CDPSession, ConsoleMessage, Page, Request, expect

#: How long one step may take in a slow run, in milliseconds.
PATIENCE = 20_000
expect.set_options(timeout=PATIENCE)
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}
#: A platform's authenticator, such as a fingerprint reader, that says yes at once.
DEVICE = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}
#: Hosts that a page may talk to: nothing leaves this machine.
LOCAL = {"localhost", "127.0.0.1"}


@dataclass
class Problem:
    """Something that a browser complains about."""

    text: str
    page: str


@dataclass
class Person:
    """One person with one browser profile.

    Every page that the person opens, and every popup, has the person's passkeys. An error in the
    console, an uncaught exception, or a request to another machine fails the test at the end,
    unless :meth:`expect_problem` names it.

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
        self.context.on("page", self._prepare)
        self.context.on("console", self._note_console)
        self.context.on("weberror", lambda error: self._note(str(error.error), error.page))
        self.context.on("request", self._note_request)

    # -- pages

    def open(self, url: str) -> Page:
        """A new tab with this page."""
        page = self.context.new_page()
        page.goto(url)
        return page

    def popup(self, page: Page, act: Callable[[], Any]) -> Page:
        """The popup that opens when ``act`` is done on the page."""
        with page.expect_popup() as opened:
            act()
        return opened.value

    def click(self, page: Page, name: str, role: Any = "button") -> None:
        """Click what has exactly this accessible name, and count the click."""
        page.get_by_role(role, name=name, exact=True).click()
        self.clicks += 1

    # -- passkeys

    def _prepare(self, page: Page) -> None:
        if page not in self._devices:
            session = self.context.new_cdp_session(page)
            session.send("WebAuthn.enable")
            device = session.send("WebAuthn.addVirtualAuthenticator", {"options": DEVICE})
            identifier = device["authenticatorId"]
            for passkey in self.passkeys.values():
                entry = {"authenticatorId": identifier, "credential": passkey}
                session.send("WebAuthn.addCredential", entry)
            # Both events carry the whole credential, with the count of its uses.
            session.on("WebAuthn.credentialAdded", self._keep)
            session.on("WebAuthn.credentialAsserted", self._keep)
            self._devices[page] = session, identifier

    def _keep(self, event: dict[str, Any]) -> None:
        credential = event["credential"]
        self.passkeys[credential["credentialId"]] = credential

    def take_another_device(self, page: Page) -> None:
        """From now on this page asks a device that has no passkey yet. The former one is lost."""
        session, identifier = self._devices.pop(page)
        session.send("WebAuthn.removeVirtualAuthenticator", {"authenticatorId": identifier})
        session.detach()
        self.passkeys.clear()
        self._prepare(page)

    def refuse_passkeys(self, page: Page) -> None:
        """From now on the person cancels each prompt of the authenticator on this page."""
        session, identifier = self._devices[page]
        params = {"authenticatorId": identifier, "isUserVerified": False}
        session.send("WebAuthn.setUserVerified", params)

    # -- what must not happen

    def expect_problem(self, pattern: str) -> None:
        """A message of the console that matches is no failure of the test."""
        self._expected.append(re.compile(pattern))

    def unexpected(self) -> list[Problem]:
        """What went wrong and should not."""
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
        """Close all pages."""
        self.context.close()


# -- what a page must be


def accessibility_faults(page: Page) -> list[str]:
    """What axe-core finds on this page."""
    results = Axe().run(page)
    return [
        f"{fault['id']}: {fault['help']}: {[node['target'] for node in fault['nodes']]}"
        for fault in results.response["violations"]
    ]


def assert_accessible(page: Page) -> None:
    """axe-core finds nothing on this page."""
    assert accessibility_faults(page) == [], page.url


def overflow(page: Page) -> int:
    """How many CSS pixels the page is wider than its window; 0 is right."""
    return page.evaluate(
        "Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth)"
    )
