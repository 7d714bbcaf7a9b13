"""Pages of packaged apps and browser extensions are admitted by their exact origin only."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drivers import TOKEN
from support.fake_wattfare import FakeWattfare

from wattfare_mw.origins import check_origins

APPS = [
    *("capacitor://localhost", "ionic://localhost", "tauri://localhost", "app://localhost"),
    *("app://obsidian.md", "app://-", "app://.", "capacitor-electron://-", "ms-appx-web://my.app"),
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc",
    "safari-web-extension://9F3A1B2C-0000-4A4A-8B8B-ABCDEF012345",
    *("http://tauri.localhost", "https://localhost", "http://localhost:3000", "https://my_app.x"),
    *("https://xn--bcher-kva.example", "http://[::1]:8000", "capacitor://localhost:8080"),
]


#: What a browser says of the page's site. Old browsers send nothing.
SITES: list[dict[str, str]] = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "none"},
    {},
]


@pytest.mark.parametrize("origin", APPS)
def test_listed_origin_is_admitted(drive: Any, fake: FakeWattfare, origin: str) -> None:
    driver = drive(allowed_origins=[origin])
    for site in SITES:
        answer = driver.request("POST", TOKEN, {"origin": origin, "host": "site.example", **site})
        assert answer.status == 200, site
        assert answer.headers["access-control-allow-origin"] == origin, site
    preflight = {"origin": origin, "access-control-request-method": "POST"}
    answer = driver.request("OPTIONS", TOKEN, preflight)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == origin


def test_unlisted_app_or_extension_is_refused(drive: Any, fake: FakeWattfare) -> None:
    """For a request of an extension, the browser sends `none` and the user's cookies."""
    driver = drive(allowed_origins=["chrome-extension://listed", "https://a.example"])
    for origin in (each for each in APPS if not each.startswith("http")):
        for site in SITES:
            headers = {"origin": origin, "host": origin.partition("://")[2], **site}
            answer = driver.request("POST", TOKEN, headers)
            assert answer.status == 403, headers
            assert "access-control-allow-origin" not in answer.headers, headers
            assert not fake.exchanges, headers


@pytest.mark.parametrize(
    ("origin", "advice"),
    [
        ("null", "every page"),
        ("*", "wildcard"),
        ("chrome-extension://*", "wildcard"),
        ("https://*.example.com", "wildcard"),
        ("file://", "'null'"),
        ("file:///index.html", "'null'"),
        ("data:text/html,x", "'null'"),
        ("capacitor://", "not an origin"),
        ("capacitor:", "not an origin"),
        ("capacitor", "not an origin"),
        ("Capacitor://localhost", "not an origin"),
        ("capacitor://localhost/", "'capacitor://localhost'"),
        ("https://a.example/login", "'https://a.example'"),
        ("https://A.example", "'https://a.example'"),
        ("https://a.example:443", "'https://a.example'"),
        ("http://a.example:80", "'http://a.example'"),
        ("https://a.example:99999", "99999"),
        ("https://a.example:0443", "0443"),
        ("https://b\u00fccher.example", "xn--"),
        ("tauri://local host", "not an origin"),
        ("tauri://localhost\n", "not an origin"),
        ("chrome-extension://a?b", "not an origin"),
        ("", "not an origin"),
    ],
)
def test_impossible_origin_of_a_browser_is_refused(origin: str, advice: str) -> None:
    with pytest.raises(ValueError, match=r"^allowed_origins: ") as raised:
        check_origins([origin])
    assert advice in str(raised.value)


@pytest.mark.parametrize("origins", [None, 5, True, b"https://a.example", [None], [["a"]]])
def test_origins_of_another_type_are_refused(origins: Any) -> None:
    with pytest.raises(TypeError, match="allowed_origins must be a list of origins"):
        check_origins(origins)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:8080", "host": "localhost"},
        {"origin": "http://a.example", "host": "10.0.0.5", "x-forwarded-host": "a.example"},
        {"origin": "http://127.0.0.1:3000", "host": "127.0.0.1", "sec-fetch-site": "same-site"},
        {"origin": "null", "host": "a.example"},
        {"origin": "null", "host": "a.example", "sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
def test_refusal_of_another_site_names_the_setting(drive: Any, headers: dict[str, str]) -> None:
    answer = drive().request("POST", TOKEN, headers)
    assert answer.status == 403
    assert "allowed_origins" in answer.json["error"]["message"]
    assert "Host" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "none", "host": "a.example"},
        {"sec-fetch-site": "none", "origin": "https://a.example", "host": "inner"},
        # From a page with `Referrer-Policy: no-referrer`.
        {"sec-fetch-site": "same-origin", "origin": "null", "host": "a.example"},
    ],
    ids=str,
)
def test_same_origin_statement_of_the_browser_is_trusted(
    drive: Any, headers: dict[str, str]
) -> None:
    assert drive().request("POST", TOKEN, headers).status == 200


@given(st.text(max_size=30) | st.from_regex(r"[a-z-]+://[a-z.:*/]*", fullmatch=True))
def test_any_text_is_a_valid_origin_or_is_refused(text: str) -> None:
    try:
        [origin] = check_origins([text])
    except ValueError:
        return
    assert origin == text
    assert "*" not in text
    assert text != "null"
    assert text.isascii()
    assert text.isprintable()
    assert text.count("/") == 2
