"""The service's pages as a browser sees them: parsed HTML, forms, links and cookies."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

import httpx

from support.http_client import http_client
from support.service import Service

#: The highest number of bytes of a page.
MAX_BYTES = 30_000
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}

VOID = frozenset(
    [
        "area",
        "base",
        "br",
        "col",
        "embed",
        "hr",
        "img",
        "input",
        "link",
        "meta",
        "source",
        "track",
        "wbr",
    ]
)


@dataclass
class Form:
    """A form of a page, with the values that it would send."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    button: str = ""


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        forms: its forms, in order.
        links: the text and the target of each link.
        elements: each start tag, with its attributes.
        inline: the content of `<script>` and `<style>` elements.
        text: all of its visible text, with single spaces.
    """

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__()
        self.answer = answer
        self.forms: list[Form] = []
        self.links: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.inline: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(answer.text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    @cached_property
    def text(self) -> str:
        return " ".join("".join(self._text).split())

    def form(self, button: str) -> Form:
        """The first form with a button of this name."""
        for form in self.forms:
            if form.button == button:
                return form
        raise AssertionError(f"no button {button!r} in {self.answer.text}")

    def link(self, text: str) -> str:
        """The target of the first link with this text."""
        for found, href in self.links:
            if " ".join(found.split()) == text:
                return href
        raise AssertionError(f"no link {text!r} in {self.answer.text}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "form":
            self.forms.append(
                Form(attributes.get("action", ""), attributes.get("method", "get").lower())
            )
        elif tag == "a":
            self.links.append(("", attributes.get("href", "")))
        elif tag == "input" and "form" in self._open and "name" in attributes:
            box = attributes.get("type") in ("checkbox", "radio")
            if not box or "checked" in attributes:
                self.forms[-1].fields[attributes["name"]] = attributes.get("value", "on")

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes no element"
        assert self._open.pop() == tag, f"</{tag}> is out of order"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.inline.append(data)
            return
        if "body" in self._open:
            self._text.append(data)
        if "a" in self._open:
            text, href = self.links[-1]
            self.links[-1] = (text + data, href)
        if "button" in self._open and "form" in self._open:
            self.forms[-1].button += data.strip()


def new_address() -> str:
    """A random private address."""
    return f"10.{'.'.join(str(byte) for byte in secrets.token_bytes(3))}"


class Browser:
    """A browser without JavaScript.

    Args:
        cookie: the value of the sign-in's cookie.
    """

    def __init__(self, service: Service, cookie: str | None = None) -> None:
        port = httpx.URL(service.url).port
        self.origin = f"http://localhost:{port}"
        self.http = http_client(base_url=self.origin)
        # Its own address: the service limits the requests of each address.
        self.http.headers["x-forwarded-for"] = new_address()
        if cookie is not None:
            self.http.cookies.set("wattfare", cookie, domain="localhost.local", path="/")

    def get(self, path: str) -> Page:
        """Opens a page and follows redirects."""
        answer = self.http.get(path, headers={"sec-fetch-site": "none"}, follow_redirects=True)
        return Page(answer)

    def send(self, form: Form, **fields: str) -> httpx.Response:
        """Sends a form, as a browser does. Does not follow redirects.

        Args:
            fields: the fields that the person fills in.
        """
        return self.post(form.action, {**form.fields, **fields})

    def post(self, path: str, fields: dict[str, str], **headers: str) -> httpx.Response:
        """Posts a form from a page of the service, unless ``headers`` say otherwise."""
        given = {"sec-fetch-site": "same-origin", "origin": "null"}
        given.update({name.replace("_", "-"): value for name, value in headers.items()})
        return self.http.post(urljoin("/", path), data=fields, headers=given)

    def follow(self, answer: httpx.Response) -> Page:
        """The page that a redirect leads to."""
        assert answer.status_code == 303, answer.text
        return self.get(answer.headers["location"])

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def check_headers(page: Page) -> None:
    headers = page.answer.headers
    assert headers.get_list("content-security-policy") == [headers["content-security-policy"]]
    directives = dict(
        directive.strip().split(" ", 1)
        for directive in headers["content-security-policy"].split(";")
    )
    form_action = directives["form-action"].split(" ")
    assert form_action[0] == "'self'"
    assert len(form_action) <= 3  # the app, and OpenRouter
    assert {**directives, "form-action": "'self'"} == POLICY
    assert headers.get_list("cache-control") == ["no-store"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "access-control-allow-origin" not in headers
    for cookie in headers.get_list("set-cookie"):
        attributes = {part.strip().lower() for part in cookie.split(";")}
        assert {"httponly", "samesite=lax", "path=/"} <= attributes
        assert not any(each.startswith("domain") for each in attributes)


def check_page(page: Page) -> None:
    """Checks the rules for every page."""
    check_headers(page)
    assert len(page.answer.content) <= MAX_BYTES
    assert page.inline == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert not any(each == "style" or each.startswith("on") for each in attributes), tag
        assert tag not in ("style", "iframe", "object", "embed", "base")
        if tag == "script":
            assert attributes["src"].startswith("/pages/")
        for attribute in ("src", "href", "action", "formaction", "poster", "srcset"):
            url = attributes.get(attribute)
            if url is not None and not (tag == "a" and attribute == "href"):
                parts = urlsplit(url)
                assert not parts.netloc, f"{tag} {attribute}={url}"
                assert parts.scheme == "", f"{tag} {attribute}={url}"
        assert not attributes.get("href", "").lower().startswith(("javascript:", "data:"))
        for attribute in ("aria-labelledby", "aria-describedby", "for"):
            assert set(attributes.get(attribute, "").split()) <= set(ids)
    for form in page.forms:
        if form.method == "post":
            assert form.fields["csrf"], form.action
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("title") == 1
    assert ("html", {"lang": "en"}) in page.elements
    assert any(attributes.get("name") == "viewport" for _, attributes in page.elements)


def token_of(browser: Browser) -> str:
    """The token of this browser's forms."""
    for path in ("/budget/delete", "/sign-in"):
        for form in browser.get(path).forms:
            if "csrf" in form.fields:
                return form.fields["csrf"]
    raise AssertionError("no page has a form")
