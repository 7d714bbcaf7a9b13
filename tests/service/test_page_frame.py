"""What surrounds the pages: static files, the host of the public URL, cookies, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.http_client import fetch
from support.pages import Browser, Page, check_page
from support.service import Service, run_service

import wattfare_mw.service.pages
from wattfare_mw.service.pages import cookies, forms
from wattfare_mw.service.pages.rendering import environment
from wattfare_mw.service.pages.static_files import static

FOLDER = Path(wattfare_mw.service.pages.__file__).parent


# -- static files


@pytest.mark.parametrize("file", sorted(each.name for each in (FOLDER / "static").iterdir()))
def test_static_file_is_cached_for_good(service: Service, file: str) -> None:
    path = static(file)
    stem, _, suffix = file.partition(".")
    assert re.fullmatch(rf"/pages/{stem}\.[0-9a-f]{{16}}\.{suffix}", path)
    answer = fetch(f"{service.url}{path}")
    assert answer.status_code == 200
    assert answer.content == (FOLDER / "static" / file).read_bytes()
    assert answer.headers.get_list("cache-control") == ["public, max-age=31536000, immutable"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in answer.headers
    kind = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[suffix]
    assert answer.headers["content-type"].startswith(kind)


@pytest.mark.parametrize(
    "name", ["style.css", "style.0000000000000000.css", "..%2froutes.py", "%2e%2e", "a/b", "%00"]
)
def test_no_other_file_is_served(service: Service, name: str) -> None:
    with Browser(service) as browser:
        answer = browser.http.get(f"/pages/{name}")
    assert answer.status_code == 404
    assert answer.headers.get_list("cache-control") == ["no-store"]


def test_style_sheet_loads_nothing() -> None:
    style = (FOLDER / "static" / "style.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "prefers-reduced-motion" in style
    assert ":focus-visible" in style
    assert len(style) < 10_000


# -- templates


@pytest.mark.parametrize("name", environment.list_templates())
def test_templates_escape_markup(name: str) -> None:
    source = (FOLDER / "templates" / name).read_text()
    assert not re.search(r"\|\s*safe\b|autoescape|Markup|\bstyle=|\son[a-z]+=|<script>", source)
    for form in re.findall(r'<form[^>]*method="post".*?</form>', source, re.DOTALL):
        assert "csrf_field()" in form


def test_template_fails_on_a_missing_name() -> None:
    with pytest.raises(Exception, match="undefined"):
        environment.get_template("error.html").render(title="x")


# -- unknown paths

UNKNOWN = ["/nothing", "/favicon.ico", "/api/v1/nothing", "/api/v2", "/v1/chat/completions", "//x"]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize(
    "accept", [BROWSER, "text/html", "TEXT/HTML; q=1", "application/json, text/html"]
)
def test_browser_gets_a_page_for_an_unknown_path(service: Service, path: str, accept: str) -> None:
    answer = fetch(f"{service.url}{path}", headers={"accept": accept})
    assert answer.status_code == 404
    page = Page(answer)
    check_page(page)
    assert "This page does not exist." in page.text
    assert page.link("My budget") == "/budget"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "",
        "application/json",
        "text/*",
        "application/json, text/html;q=0.9",
        "text/html;q=0",
        "text/html;q=x",
        "text/htmlx",
    ],
)
def test_client_gets_json_for_an_unknown_path(service: Service, path: str, accept: str) -> None:
    answer = fetch(f"{service.url}{path}", headers={"accept": accept})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "invalid_request"


def test_only_a_get_of_an_unknown_path_gets_a_page(service: Service) -> None:
    headers = {"accept": BROWSER}
    for method in ("POST", "PUT", "DELETE"):
        answer = fetch(f"{service.url}/nothing", method, headers=headers, content=b"")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    # This path exists.
    answer = fetch(f"{service.api}/sessions", headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/json")


# -- the host


@pytest.mark.parametrize(
    "path", ["/budget", "/budget/calls?before=1.2&connection=%20x", "/sign-in", "/"]
)
def test_page_at_an_ip_address_redirects_to_localhost(service: Service, path: str) -> None:
    port = httpx.URL(service.url).port
    for host in (f"127.0.0.1:{port}", "127.0.0.1", f"[::1]:{port}", "127.8.9.10"):
        answer = fetch(f"{service.url}{path}", headers={"host": host})
        assert answer.status_code == 307
        assert answer.headers["location"] == f"http://localhost:{port}{path}"


def test_api_is_not_redirected(service: Service) -> None:
    assert fetch(f"{service.url}/healthz").status_code == 200
    assert fetch(f"{service.api}/status").status_code == 401


def test_links_ignore_the_host_header(service: Service) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", 'x"><b>', "localhost@evil.example"):
        for path in ("/budget", "/budget/nothing", "/"):
            headers = {"host": host, "x-forwarded-host": "evil.example"}
            answer = fetch(f"{service.url}{path}", headers=headers)
            assert "evil.example" not in answer.text + repr(answer.headers)


def test_other_public_url_redirects_nothing(secure: Service) -> None:
    """The proxy in front of it may use 127.0.0.1."""
    answer = fetch(f"{secure.url}/budget")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?next=%2Fbudget"


# -- cookies and tokens


def test_cookie_has_the_host_prefix_under_tls() -> None:
    assert cookies.name_of(cookies.SIGN_IN, "https://x.example") == "__Host-wattfare"
    assert cookies.name_of(cookies.SIGN_IN, "http://localhost:1") == "wattfare"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service behind a proxy with TLS."""
    folder = tmp_path_factory.mktemp("secure")
    with run_service(folder, "--public-url", "https://wattfare.example.com") as service:
        yield service


def test_cookies_are_secure_behind_tls(secure: Service) -> None:
    answer = fetch(f"{secure.url}/sign-in")
    check_page(Page(answer))
    (cookie,) = answer.headers.get_list("set-cookie")
    name, _, rest = cookie.partition("=")
    assert name == "__Host-wattfare-visit"
    assert {"Secure", "HttpOnly", "SameSite=lax", "Path=/"} <= set(rest.split("; "))


def test_cookie_without_the_prefix_is_ignored(secure: Service) -> None:
    """Another host of the same site, or a page without TLS, could have set it."""
    planted = forms.new_cookie()
    answer = fetch(
        f"{secure.url}/sign-in/code",
        "POST",
        data={"csrf": forms.token(planted), "code": "x", "next": "/budget"},
        cookies={"wattfare-visit": planted, "wattfare": planted},
        headers={"origin": "https://wattfare.example.com", "sec-fetch-site": "same-origin"},
    )
    assert answer.status_code == 403
    assert "out of date" in Page(answer).text


def test_form_before_the_sign_in_is_bound_to_its_browser(service: Service) -> None:
    with Browser(service) as one, Browser(service) as other:
        form = one.get("/sign-in").form("Sign in with a code")
        assert "out of date" in Page(other.send(form)).text
        answer = one.send(form, code="x")
        assert answer.status_code == 403
        assert "recovery code is not valid" in Page(answer).text
        one.http.cookies.clear()
        assert "out of date" in Page(one.send(form)).text


@pytest.mark.parametrize("cookie", ["", "x", "A" * 42, "A" * 44, "A" * 42 + "!", "é" * 43])
def test_made_up_cookie_is_replaced(service: Service, cookie: str) -> None:
    headers = {
        "cookie": f"wattfare-visit={cookie}; wattfare={cookie}".encode(),
        "host": "localhost",
    }
    answer = fetch(f"{service.url}/sign-in", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["set-cookie"].startswith("wattfare-visit=")


def test_form_token_depends_on_the_cookie() -> None:
    one, other = forms.new_cookie(), forms.new_cookie()
    assert forms.token(one) == forms.token(one) != forms.token(other)
    assert one not in forms.token(one)


# -- errors


def test_page_error_reveals_no_more_than_the_api(service: Service) -> None:
    with Browser(service) as browser:
        answer = browser.http.put("/budget")
        page = Page(answer)
    assert answer.status_code == 405
    assert "allow" in answer.headers
    check_page(page)
    assert answer.headers["x-request-id"] in page.text
    assert fetch(f"{service.url}/nothing").headers["content-type"] == "application/json"
