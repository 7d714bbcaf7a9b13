"""``client_path`` serves ``wattfare.js``, and next to it the page to which a browser returns."""

from __future__ import annotations

from typing import Any

import pytest
from support.drivers import Drive, Driver

from wattfare_mw.browser import read

PATH = "/assets/wattfare.js"
RETURN = "/assets/wattfare-return"


@pytest.fixture
def driver(drive: Drive) -> Driver:
    return drive(client_path=PATH)


def test_client_path_serves_the_module(driver: Driver) -> None:
    answer = driver.request("GET", PATH)
    assert (answer.status, answer.body) == (200, read("wattfare.js"))
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "public, max-age=300"


def test_cached_module_is_not_sent_again(driver: Driver) -> None:
    etag = driver.request("GET", PATH).headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        answer = driver.request("GET", PATH, {"if-none-match": known})
        assert (answer.status, answer.body) == (304, b""), known
        assert answer.headers["etag"] == etag
        assert "content-length" not in answer.headers
    assert driver.request("GET", PATH, {"if-none-match": '"other"'}).status == 200


def test_head_has_no_body(driver: Driver) -> None:
    answer = driver.request("HEAD", PATH)
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) == len(read("wattfare.js"))


def test_return_page_loads_only_the_module(drive: Drive) -> None:
    driver = drive(client_path="/a/b&c.js")
    answer = driver.request("GET", "/a/wattfare-return")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.body.count(b"<script") == 1
    assert b'<script type="module" src="b%26c.js"></script>' in answer.body


def test_other_methods_are_refused(driver: Driver) -> None:
    for path in (PATH, RETURN):
        answer = driver.request("POST", path)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_client_files_are_off_by_default(drive: Drive) -> None:
    driver = drive()
    assert PATH not in driver.middleware.paths


@pytest.mark.parametrize("path", ["wattfare.js", "/wattfare", "/", ""])
def test_invalid_path_is_refused(drive: Drive, path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        drive(client_path=path)


def test_path_in_use_is_refused(drive: Drive) -> None:
    with pytest.raises(ValueError, match="two paths must not be equal"):
        drive(client_path="/x.js", token_path="/x.js")


def test_two_apps_can_serve_client_files(drive: Any) -> None:
    one, other = drive(client_path="/one.js"), drive(client_path="/other.js")
    assert one.request("GET", "/one.js").body == other.request("GET", "/other.js").body
