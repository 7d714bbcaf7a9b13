"""A neighbouring site sets cookies for the whole domain, so that a person acts in another person's
account."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from support.http_client import fetch
from support.pages import Browser
from support.people import Person
from support.service import Service, run_service

#: The server sees TLS only at the proxy in front of it, as most services do.
PUBLIC_URL = "https://budget.example.com"


@pytest.fixture(scope="module")
def behind_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("behind_tls")
    with run_service(folder, "--public-url", PUBLIC_URL) as running:
        yield running


@pytest.fixture
def mallory(own_service: Service) -> Iterator[str]:
    """The cookie of Mallory's sign-in."""
    with Person(own_service) as person:
        person.sign_in()
        yield person.browser.http.cookies["wattfare"]


def get(service: Service, cookie: bytes) -> httpx.Response:
    headers = [(b"cookie", cookie)]
    url = f"{service.url}/sign-in"
    return fetch(url, headers=headers)


def is_signed_in(service: Service, cookie: bytes) -> bool:
    """True if the sign-in page redirects at once."""
    url = f"{Browser(service).origin}/sign-in"
    headers = [(b"cookie", cookie)]
    answer = fetch(url, headers=headers)
    assert answer.status_code in (200, 303), answer.text
    return answer.status_code == 303


def test_cookie_of_a_sign_in_works(own_service: Service, mallory: str) -> None:
    assert is_signed_in(own_service, b"theme=dark; wattfare=%s; a=b" % mallory.encode())


#: Python strips these characters. A browser sends them as a part of the name.
SPACES = [b"\xa0", b"\x85", b"\xa0 ", b"\x85 \xa0"]


@pytest.mark.parametrize("space", SPACES)
def test_cookie_name_with_unusual_white_space_is_ignored(
    own_service: Service, mallory: str, space: bytes
) -> None:
    assert not is_signed_in(own_service, space + b"wattfare=" + mallory.encode())
    assert not is_signed_in(own_service, b"wattfare" + space + b"=" + mallory.encode())
    assert not is_signed_in(
        own_service, b"wattfare=mine; %swattfare=%s" % (space, mallory.encode())
    )


def test_two_cookies_with_our_name_are_both_ignored(own_service: Service, mallory: str) -> None:
    for pair in (b"wattfare=%s; wattfare=mine", b"wattfare=mine; wattfare=%s"):
        assert not is_signed_in(own_service, pair % mallory.encode())


@pytest.mark.parametrize("space", [b"", *SPACES])
def test_cookie_without_the_prefix_is_ignored_under_tls(behind_tls: Service, space: bytes) -> None:
    """A form is bound to its browser's cookie. If the browser has no such cookie, the page sets a
    new one."""
    value = b"A" * 43
    ours = get(behind_tls, b"__Host-wattfare-visit=" + value)
    assert "set-cookie" not in ours.headers
    for name in (b"wattfare-visit", b"__Host-wattfare-visit"):
        if not space and name.startswith(b"__Host-"):
            continue
        tossed = get(behind_tls, space + name + b"=" + value)
        assert tossed.headers["set-cookie"].startswith("__Host-wattfare-visit=")
