"""Rules for every page of the service. The tests go through the table of pages, so a new page is
covered by itself."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.routing import Route
from support.pages import Browser, Page, check_page, token_of
from support.payers import new_payer, store_of
from support.service import Service

from wattfare_mw.service.pages.routes import page_routes

ROUTES = [route for route in page_routes() if not route.path.startswith("/pages/")]
GETS = [route for route in ROUTES if "GET" in (route.methods or ())]
POSTS = [route for route in ROUTES if "POST" in (route.methods or ())]


def path_of(route: Route) -> str:
    """A path of this route whose parameters match nothing."""
    return re.sub(r"\{[^}]*\}", "0" * 32, route.path)


def name(route: Route) -> str:
    return route.path


@pytest.fixture
async def ada(service: Service) -> AsyncIterator[Browser]:
    """The browser of a signed-in payer."""
    async with store_of(service.database) as store:
        payer = await new_payer(store)
    with Browser(service, payer.cookie) as browser:
        yield browser


@pytest.fixture
def browser(service: Service) -> Iterator[Browser]:
    with Browser(service) as browser:
        yield browser


@pytest.mark.parametrize("route", GETS, ids=name)
def test_payer_page_needs_a_sign_in(browser: Browser, route: Route) -> None:
    check_page(browser.get(path_of(route)))


@pytest.mark.parametrize(
    "path", ["/budget/nothing", "/approve", "/sign-in/x/y", "/funding/a/b/c", "/pages/nothing.css"]
)
def test_error_of_a_page_is_a_page(browser: Browser, path: str) -> None:
    page = browser.get(path)
    assert page.answer.status_code in (404, 405)
    check_page(page)


@pytest.mark.parametrize("route", POSTS, ids=name)
def test_form_without_its_token_is_refused(browser: Browser, route: Route) -> None:
    for fields in ({}, {"csrf": ""}, {"csrf": "A" * 32}):
        answer = browser.post(path_of(route), fields)
        assert answer.status_code == 403
        check_page(Page(answer))


@pytest.mark.parametrize("route", POSTS, ids=name)
@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "cross-site", "origin": "https://evil.example"},
        {"sec_fetch_site": "same-site", "origin": "http://localhost:1"},
        {"sec_fetch_site": "same-origin", "origin": "https://evil.example"},
        {"sec_fetch_site": "cross-site", "origin": "null"},
    ],
)
async def test_form_of_another_site_is_refused(
    ada: Browser, route: Route, headers: dict[str, str]
) -> None:
    fields = {"csrf": token_of(ada)}
    answer = ada.post(path_of(route), fields, **headers)
    assert answer.status_code == 403
    assert "another site" in Page(answer).text


@pytest.mark.parametrize("route", GETS, ids=name)
async def test_payer_page_has_its_security_headers(ada: Browser, route: Route) -> None:
    if not route.path.endswith(".csv"):
        check_page(ada.get(path_of(route)))


@pytest.mark.parametrize("route", ROUTES, ids=name)
async def test_pages_cannot_be_framed(ada: Browser, browser: Browser, route: Route) -> None:
    """This covers private pages, public pages and refusals."""
    for who in (ada, browser):
        if route in GETS:
            answer = who.http.get(path_of(route), follow_redirects=True)
        else:
            answer = who.post(path_of(route), {"csrf": token_of(who)})
        if answer.is_redirect or not answer.content:
            continue
        assert answer.headers.get_list("x-frame-options") == ["DENY"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("route", POSTS, ids=name)
async def test_payer_form_without_its_token_is_refused(ada: Browser, route: Route) -> None:
    for fields in ({}, {"csrf": "A" * 32}):
        assert ada.post(path_of(route), fields).status_code == 403


@pytest.mark.parametrize("route", POSTS, ids=name)
def test_form_body_is_limited(browser: Browser, route: Route) -> None:
    path = path_of(route)
    assert browser.post(path, {"csrf": "x" * 70_000}).status_code == 413
    headers = {"sec-fetch-site": "same-origin"}
    pieces = (b"x" * 7_000 for _ in range(10))  # without a length
    assert browser.http.post(path, content=pieces, headers=headers).status_code == 413
    for content, kind in ((b"{}", "application/json"), (b"csrf=1", "text/plain")):
        answer = browser.http.post(path, content=content, headers={**headers, "content-type": kind})
        assert answer.status_code == 415
    many = b"&".join(b"a%d=" % number for number in range(200))
    for content in (b"csrf=%ff", b"csrf=\xff", many, b"a=1&a=2"):
        answer = browser.http.post(
            path,
            content=content,
            headers={**headers, "content-type": "application/x-www-form-urlencoded"},
        )
        assert answer.status_code == 400
