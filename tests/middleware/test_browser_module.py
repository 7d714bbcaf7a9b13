"""``client_path``: the module for browsers, and the page that an approval returns to."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from support.drivers import Driver

from wattfare_mw import browser

Drive = Callable[..., Driver]
CLIENT = "/static/wattfare.js"
RETURN = "/static/wattfare-return"


@pytest.mark.parametrize("path", ["/wattfare.js", "/wattfare-return"])
def test_there_is_none_by_default(drive: Drive, path: str) -> None:
    assert (
        drive().request("GET", path).headers.get("content-type")
        != browser.asset(browser.MODULE).media_type
    )


def test_the_module(drive: Drive) -> None:
    driver = drive(client_path=CLIENT, resolve_user=lambda request: None)
    answer = driver.request("GET", CLIENT)
    assert (answer.status, answer.body) == (200, browser.asset(browser.MODULE).content)
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = driver.request("HEAD", CLIENT)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.body))

    known = driver.request("GET", CLIENT, {"if-none-match": f'"other", W/{answer.headers["etag"]}'})
    assert (known.status, known.body) == (304, b"")
    assert known.headers["etag"] == answer.headers["etag"]
    assert driver.request("GET", CLIENT, {"if-none-match": '"other"'}).status == 200
    assert driver.request("POST", CLIENT).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("client", "page", "source"),
    [
        (CLIENT, RETURN, "wattfare.js"),
        ("/w.js", "/wattfare-return", "w.js"),
        ('/a/"><b>.js', "/a/wattfare-return", "%22%3E%3Cb%3E.js"),
    ],
)
def test_the_return_page(drive: Drive, client: str, page: str, source: str) -> None:
    driver = drive(client_path=client, resolve_user=lambda request: None)
    answer = driver.request("GET", page, query="approval=x&code=y%3Cscript%3E")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    # One script, by its URL, and nothing of the query.
    [script] = re.findall(rb"<script\b[^>]*>[^<]*</script>", answer.body)
    assert script == f'<script type="module" src="{source}"></script>'.encode()
    assert b"y<" not in answer.body
    assert driver.request("HEAD", page).body == b""


@pytest.mark.parametrize("path", ["wattfare.js", "/", "/static/", "/api/wattfare-token"])
def test_what_is_no_path_of_a_module(drive: Drive, path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        drive(client_path=path)
