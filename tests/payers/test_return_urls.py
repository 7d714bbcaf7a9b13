"""Where a browser may return to after an approval."""

from __future__ import annotations

import pytest

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.payers import return_urls

ORIGINS = frozenset({"https://app.example.com", "https://other.example:8443"})


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("https://app.example.com/", "https://app.example.com"),
        ("https://app.example.com:443/x", "https://app.example.com"),
        ("https://app.example.com?a=b", "https://app.example.com"),
        ("https://app.example.com/a/b?c=d&e=@f://g", "https://app.example.com"),
        ("https://app.example.com/@evil.example/", "https://app.example.com"),
        ("https://other.example:8443/return", "https://other.example:8443"),
    ],
)
def test_page_of_a_registered_origin_is_accepted(url: str, origin: str) -> None:
    assert return_urls.check(url, ORIGINS, "live") == origin


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("https://evil.example/", 403),
        ("https://app.example.com.evil.example/", 403),
        ("https://evil.app.example.com/", 403),
        ("https://app.example.com:444/", 403),
        ("https://app.example.com:80/", 403),
        ("https://other.example/", 403),
        ("http://app.example.com/", 403),
        ("http://app.example.com:443/", 403),
        ("http://localhost:3000/", 403),
        ("https://app.example.com@evil.example/", 400),
        ("https://app.example.com:x@evil.example/", 400),
        ("https://@app.example.com/", 400),
        ("https://app.example.com/#", 400),
        ("https://app.example.com/#fragment", 400),
        ("https://app.example.com/?a=b#c", 400),
        ("https://app.example.com\\@evil.example/", 400),
        ("https://app.example.com\\.evil.example/", 400),
        ("https:\\\\app.example.com/", 400),
        ("https:/app.example.com/", 400),
        ("https:app.example.com/", 400),
        ("https:///app.example.com/", 400),
        ("//app.example.com/", 400),
        ("https://[:::]/", 403),
        ("https://[1.2.3.4]/", 403),
        ("/return", 400),
        ("", 400),
        ("javascript:alert(1)", 400),
        ("javascript://app.example.com/%0aalert(1)", 400),
        ("data:text/html,x", 400),
        ("HTTPS://app.example.com/", 400),
        ("https://APP.example.com/", 400),
        ("https://app.example.com./", 400),
        ("https://app.example.com:0443/", 400),
        ("https://app.example.com:/", 400),
        ("https://app.example.com:99999/", 400),
        ("https://app.example.com:4e2/", 400),
        (" https://app.example.com/", 400),
        ("https://app.example.com/ x", 400),
        ("https://app.example.com/\r\nSet-Cookie: a=b", 400),
        ("https://app.example.com/\t", 400),
        ("https://app.example.com/\0", 400),
        ("https://app.exämple.com/", 400),
        ("https://app.example.com/é", 400),
        ('https://app.example.com/"', 400),
        ("https://app.example.com/<script>", 400),
        ("https://app.example.com;evil.example/", 400),
        ("https://app.example.com/?code=x", 400),
        ("https://app.example.com/?a=b&approval=x", 400),
        ("https://app.example.com/?denied", 400),
        ("https://app.example.com/?c%6fde=x", 400),
        ("https://app.example.com/" + "x" * 2000, 400),
    ],
)
def test_other_pages_are_refused(url: str, status: int) -> None:
    for mode in ("live", "test"):
        if url == "http://localhost:3000/" and mode == "test":
            continue
        with pytest.raises(WattfareError) as refusal:
            return_urls.check(url, ORIGINS, mode)
        assert (refusal.value.code, refusal.value.status) == ("invalid_request", status)


@pytest.mark.parametrize("host", ["localhost", "localhost:3000", "127.0.0.1", "127.0.0.1:8000"])
def test_test_app_may_use_any_local_port(host: str) -> None:
    assert return_urls.check(f"http://{host}/x", frozenset(), "test") == f"http://{host}"
    with pytest.raises(WattfareError):
        return_urls.check(f"http://{host}/x", frozenset(), "live")
    with pytest.raises(WattfareError):
        return_urls.check(f"https://{host}/x", frozenset(), "test")


@pytest.mark.parametrize(
    "url", ["http://localhost.evil.example/", "http://127.0.0.1.nip.io/", "http://127.0.0.2/"]
)
def test_host_that_only_resembles_this_machine_is_refused(url: str) -> None:
    with pytest.raises(WattfareError):
        return_urls.check(url, frozenset(), "test")


@pytest.mark.parametrize(
    ("url", "with_code"),
    [
        ("https://a.example", "https://a.example?approval=x&code=a%2Fb"),
        ("https://a.example/r", "https://a.example/r?approval=x&code=a%2Fb"),
        ("https://a.example/r?", "https://a.example/r?&approval=x&code=a%2Fb"),
        ("https://a.example/r?a=b", "https://a.example/r?a=b&approval=x&code=a%2Fb"),
        ("https://a.example/r?a=%20&a=+", "https://a.example/r?a=%20&a=+&approval=x&code=a%2Fb"),
    ],
)
def test_query_of_the_app_is_kept(url: str, with_code: str) -> None:
    assert return_urls.with_answer(url, {"approval": "x", "code": "a/b"}) == with_code
