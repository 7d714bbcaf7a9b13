"""An async ``resolve_user`` under gevent, whose greenlets share one thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.drivers import INFERENCE, STATUS, TOKEN, body_of
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.http_client import fetch, http_client
from support.servers import gunicorn_server

pytest.importorskip("gevent")

CALLS = 10


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def url(request: pytest.FixtureRequest, _fake: FakeWattfare) -> Iterator[str]:
    environment = {"WATTFARE_SECRET_KEY": SECRET_KEY, "WATTFARE_BASE_URL": _fake.url}
    options = ["--worker-class", request.param, "--threads", str(CALLS)]
    with gunicorn_server("support.gevent_app:app", *options, env=environment) as address:
        yield f"http://{address[0]}:{address[1]}"


def all_at_once(url: str, method: str, path: str, content: bytes) -> list[httpx.Response]:
    def visit(number: int) -> httpx.Response:
        headers = {"content-type": "application/json", "x-me": f"user_{number}"}
        with http_client() as client:
            return client.request(method, url + path, headers=headers, content=content)

    with ThreadPoolExecutor(CALLS) as visitors:
        return list(visitors.map(visit, range(CALLS)))


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", INFERENCE, body_of(stream=True)),
        ("POST", INFERENCE, body_of()),
        ("POST", TOKEN, b""),
        ("GET", STATUS, b""),
    ],
)
def test_concurrent_calls_all_succeed(
    url: str, fake: FakeWattfare, method: str, path: str, content: bytes
) -> None:
    answers = all_at_once(url, method, path, content)
    assert [answer.status_code for answer in answers] == [200] * CALLS
    if path == INFERENCE:
        assert {each.user for each in fake.exchanges} == {f"user_{n}" for n in range(CALLS)}
    assert int(fetch(f"{url}/most").text) > 1


def test_each_view_gets_its_own_user(url: str) -> None:
    answers = all_at_once(url, "GET", "/sync", b"")
    assert [answer.text for answer in answers] == [f"user_{n}" for n in range(CALLS)]


def test_async_view_gets_its_user(url: str) -> None:
    """One request at a time: Flask itself cannot run two async views at once under gevent."""
    for number in range(2):
        answer = fetch(f"{url}/async", headers={"x-me": f"user_{number}"})
        assert (answer.status_code, answer.text) == (200, f"user_{number}")


def test_error_of_resolve_user_affects_only_its_request(url: str) -> None:
    answers = [fetch(url + STATUS) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [401, 401]


def test_recursion_of_resolve_user_is_answered(url: str) -> None:
    """gevent itself cannot pass on an exception with such a long traceback."""
    answer = fetch(url + STATUS, headers={"x-me": "endless"})
    assert answer.status_code == 500
