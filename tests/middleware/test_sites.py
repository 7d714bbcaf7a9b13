"""Which sites may send requests from a browser: the cross-site rule, the preflight and the CORS
headers."""

from __future__ import annotations

from typing import Any

import pytest
from support.drivers import INFERENCE, JSON, MODELS, STATUS, TOKEN, Drive, Driver, body_of
from support.fake_wattfare import SECRET_KEY, FakeWattfare

from wattfare_mw import AsyncWattfare, Request, Wattfare
from wattfare_mw.headers import Headers

OTHER = "https://other.example"
SPENDING = [TOKEN, INFERENCE]


def post(driver: Driver, path: str, **headers: str) -> Any:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return driver.request("POST", path, {**JSON, **fields}, body_of())


SAME_SITE: list[dict[str, str]] = [
    {},
    {"host": "app.example"},
    {"sec_fetch_site": "same-origin"},
    {"sec_fetch_site": "none"},
    # The browser's own statement counts more than a comparison of names.
    {"sec_fetch_site": "same-origin", "origin": "http://inner", "host": "outer"},
    {"origin": "http://app.example", "host": "app.example"},
    {"origin": "https://app.example", "host": "app.example"},
    {"origin": "https://app.example", "host": "app.example:443"},
    {"origin": "http://app.example", "host": "app.example:80"},
    {"origin": "https://app.example:443", "host": "app.example"},
    {"origin": "http://app.example:8000", "host": "app.example:8000"},
    {"origin": "http://APP.example", "host": "app.EXAMPLE"},
    {"origin": "http://[::1]:8000", "host": "[::1]:8000"},
    {"origin": "http://[::1]", "host": "[::1]:80"},
    {"origin": "http://127.0.0.1:5000", "host": "127.0.0.1:5000"},
]


@pytest.mark.parametrize("path", SPENDING)
def test_same_site_pages_and_other_clients_are_admitted(drive: Drive, path: str) -> None:
    driver = drive()
    for headers in SAME_SITE:
        assert post(driver, path, **headers).status == 200, headers


OTHER_SITES: list[dict[str, str]] = [
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": ""},
    {"sec_fetch_site": "Same-Origin"},
    {"sec_fetch_site": "same-origin, cross-site"},
    {"sec_fetch_site": "cross-site", "origin": "http://app.example", "host": "app.example"},
    {"origin": OTHER, "host": "app.example"},
    {"origin": "null", "host": "app.example"},
    {"origin": "null", "host": "null"},
    {"origin": "null"},
    {"origin": "", "host": ""},
    {"origin": "", "host": "app.example"},
    {"origin": "http://", "host": ""},
    {"origin": "http://app.example", "host": ""},
    {"origin": "http://app.example"},
    {"origin": "http://app.example", "host": "app.example:8000"},
    {"origin": "http://app.example:8000", "host": "app.example"},
    {"origin": "http://app.example", "host": "app.example:443"},
    {"origin": "http://app.example.evil", "host": "app.example"},
    {"origin": "http://evil-app.example", "host": "app.example"},
    {"origin": "http://sub.app.example", "host": "app.example"},
    {"origin": "http://app.example, http://evil.example", "host": "app.example"},
    {"origin": "http://evil.example http://app.example", "host": "app.example"},
    {"origin": "chrome-extension://app.example", "host": "app.example"},
    {"origin": "file://", "host": "app.example"},
    {"origin": "app.example", "host": "app.example"},
    {"origin": "//app.example", "host": "app.example"},
    {"origin": "http://[::1", "host": "[::1"},
    {"origin": "http://app.example:x", "host": "app.example:x"},
    {"origin": "http://evil.example@app.example", "host": "app.example"},
    {"origin": "http://app.example/path", "host": "app.example"},
    {"origin": "http://app.example?q", "host": "app.example"},
    {"origin": "http://app.example#f", "host": "app.example"},
    {"origin": "http://app.example", "host": "evil@app.example"},
    {"origin": "http://app.example", "host": "app.example/x"},
    {"origin": "http://app.example", "host": "app.example, app.example"},
    {"origin": "http://\u00fc.example", "host": "app.example"},
]


@pytest.mark.parametrize("path", SPENDING)
def test_other_sites_are_refused(drive: Drive, fake: FakeWattfare, path: str) -> None:
    asked: list[Any] = []
    driver = drive(resolve_user=lambda request: asked.append(request) or "user_1")
    for headers in OTHER_SITES:
        answer = post(driver, path, **headers)
        assert (answer.status, answer.code) == (403, "invalid_request"), headers
        assert not asked, headers
        assert not fake.exchanges, headers
        assert not any("access-control" in name for name in answer.headers), headers


@pytest.mark.parametrize("path", SPENDING)
def test_several_origins_count_as_none(drive: Drive, fake: FakeWattfare, path: str) -> None:
    driver = drive(allowed_origins=[OTHER])
    fields = [*JSON.items(), ("host", "app.example"), ("origin", OTHER), ("origin", OTHER)]
    assert driver.request("POST", path, fields, body_of()).status == 403
    assert not fake.exchanges


@pytest.mark.parametrize("path", SPENDING)
@pytest.mark.parametrize("site", [{}, {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": ""}])
def test_allowed_origins_are_admitted(drive: Drive, path: str, site: dict[str, str]) -> None:
    driver = drive(allowed_origins=[OTHER, "http://localhost:3000"])
    for origin in (OTHER, "http://localhost:3000"):
        answer = post(driver, path, origin=origin, host="app.example", **site)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["access-control-allow-credentials"] == "true"
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "x-wattfare-max-tokens", "x-wattfare-reserved"} <= set(exposed)
        assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        *("http://other.example", "https://other.example:443", "https://other.example/"),
        *("https://OTHER.example", "https://other.example.evil", "https://x.other.example"),
        *("null", "*", "", "https://other.exampl", " https://other.example"),
    ],
)
def test_allowed_origins_are_exact(drive: Drive, fake: FakeWattfare, origin: str) -> None:
    answer = post(drive(allowed_origins=[OTHER]), TOKEN, origin=origin, host="app.example")
    assert (answer.status, answer.code) == (403, "invalid_request")
    assert not any("access-control" in name for name in answer.headers)
    assert answer.headers["vary"] == "Origin"
    assert not fake.exchanges


def test_allowed_origin_can_read_a_stream(drive: Drive) -> None:
    driver = drive(allowed_origins=[OTHER])
    headers = {**JSON, "origin": OTHER, "sec-fetch-site": "cross-site"}
    answer = driver.request("POST", INFERENCE, headers, body_of(stream=True))
    assert answer.headers["access-control-allow-origin"] == OTHER
    assert answer.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize("path", [TOKEN, INFERENCE, STATUS, MODELS])
def test_allowed_origin_can_read_errors(drive: Drive, path: str) -> None:
    answer = drive(allowed_origins=[OTHER]).request("PUT", path, {"origin": OTHER})
    assert answer.status == 405
    assert answer.headers["access-control-allow-origin"] == OTHER


@pytest.mark.parametrize("path", [STATUS, MODELS])
def test_other_site_may_get_but_cannot_read(drive: Drive, path: str) -> None:
    # Another site may send the request but cannot read the answer.
    answer = drive().request("GET", path, {"origin": OTHER, "sec-fetch-site": "cross-site"})
    assert answer.status == 200
    assert not any("access-control" in name for name in answer.headers)


# -- the preflight


def preflight(driver: Driver, path: str, origin: str | None, headers: str | None = None) -> Any:
    fields = {"access-control-request-method": "POST"}
    if origin is not None:
        fields["origin"] = origin
    if headers is not None:
        fields["access-control-request-headers"] = headers
    return driver.request("OPTIONS", path, fields)


@pytest.mark.parametrize(
    ("path", "methods"),
    [(TOKEN, "POST"), (INFERENCE, "POST"), (STATUS, "GET, HEAD, DELETE"), (MODELS, "GET, HEAD")],
)
def test_preflight_of_an_allowed_origin(
    drive: Drive, fake: FakeWattfare, path: str, methods: str
) -> None:
    def never(request: Any) -> str:
        raise AssertionError("a preflight carries no cookies")

    driver = drive(allowed_origins=[OTHER], resolve_user=never)
    answer = preflight(driver, path, OTHER, "content-type, x-request-id")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == OTHER
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-allow-methods"] == methods
    assert answer.headers["access-control-allow-headers"] == "content-type, x-request-id"
    assert "content-type" not in answer.headers
    assert not fake.exchanges


@pytest.mark.parametrize("origin", [None, "null", "*", "", "http://other.example", OTHER + "/"])
@pytest.mark.parametrize("origins", [[], [OTHER]])
def test_preflight_of_another_origin(drive: Drive, origin: str | None, origins: Any) -> None:
    answer = preflight(drive(allowed_origins=origins), INFERENCE, origin)
    assert (answer.status, answer.code) == (403, "invalid_request")
    assert not any("access-control" in name for name in answer.headers)


@pytest.mark.parametrize("asked", ["a\r\nset-cookie: a=1", "a\x00", "\u00fc", "\x7f"])
def test_invalid_header_name_is_not_repeated(drive: Drive, asked: str) -> None:
    answer = preflight(drive(allowed_origins=[OTHER]), INFERENCE, OTHER, asked)
    assert answer.status == 204
    assert answer.headers["access-control-allow-headers"] == ""


def test_options_without_a_preflight_is_refused(drive: Drive) -> None:
    answer = drive(allowed_origins=[OTHER]).request("OPTIONS", TOKEN, {"origin": OTHER})
    assert answer.status == 405


@pytest.mark.parametrize(
    "origins",
    [
        *(["*"], ["null"], [""], ["app.example"], ["https://*.example"], ["https://a.example/"]),
        *(["ftp://a.example"], "*", ["https://"], ["https://a.example?x"], ["https://a b"]),
        *(["https://A.example"], ["https://a.example:443"], ["http://a.example:80"]),
        *(["https://u@a.example"], ["https://\u00fc.example"], ["https://a.example#x"]),
        *(["https://a.example:x"], ["https://a.example:"]),
    ],
)
def test_impossible_origin_raises_at_start(drive: Drive, origins: Any) -> None:
    with pytest.raises(ValueError, match="allowed_origins"):
        drive(allowed_origins=origins)


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://a.example", "http://[::1]:8080", "http://10.0.0.1"]
)
def test_single_origin_may_be_a_string(drive: Drive, origin: str) -> None:
    assert post(drive(allowed_origins=origin), TOKEN, origin=origin).status == 200


def test_session_handler_applies_the_same_rule(fake: FakeWattfare) -> None:
    for kind in (Wattfare, AsyncWattfare):
        with pytest.raises(ValueError, match="allowed_origins"):
            kind(SECRET_KEY).session_handler(lambda request: "u", allowed_origins=["*"])
    with Wattfare(SECRET_KEY, base_url=fake.url) as client:
        handler = client.session_handler(lambda request: "u", allowed_origins=OTHER)
        for origin, status in ((OTHER, 200), (OTHER[:-1], 403), ("https://", 403), ("", 403)):
            request = Request("POST", "/token", Headers([("Origin", origin)]))
            assert handler(request).status == status
