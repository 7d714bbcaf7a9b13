"""The current user under gunicorn: greenlets share a thread, and threads are reused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.current_apps import billed
from support.http_client import http_client
from support.servers import gunicorn_server
from support.service import App, Service

pytest.importorskip("gevent")

USERS = [f"u{number}" for number in range(1, 13)]


@pytest.fixture(scope="module")
def app(service: Service) -> Iterator[App]:
    with service.app() as app:
        for user in USERS:
            app.connect(user)
        yield app


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def url(request: pytest.FixtureRequest, app: App) -> Iterator[str]:
    environment = {
        "WATTFARE_SECRET_KEY": app.keys.secret_key,
        "WATTFARE_BASE_URL": app.service.url,
    }
    options = ["--worker-class", request.param, "--threads", "4"]
    with gunicorn_server("support.gevent_current_app:app", *options, env=environment) as address:
        yield f"http://{address[0]}:{address[1]}"


@pytest.mark.parametrize(
    ("path", "answer", "calls"),
    [
        ("/whole", lambda text: text, 1),
        ("/openai", lambda text: text, 1),
        ("/stream", lambda text: text * 2, 2),
        # A new thread has no request, even if it is a greenlet.
        ("/pool", lambda text: f'["none","{text}"]\n', 1),
        ("/thread", lambda _: '["none"]\n', 0),
    ],
)
def test_each_call_bills_the_user_of_its_request(
    url: str, app: App, path: str, answer: object, calls: int
) -> None:
    before = billed(app)

    def visit(user: str) -> str:
        with http_client() as client:
            found = [client.get(url + path, headers={"x-me": user}) for _ in range(2)]
        assert [each.status_code for each in found] == [200] * 2
        assert found[0].text == found[1].text
        return found[0].text

    with ThreadPoolExecutor(len(USERS)) as visitors:
        texts = list(visitors.map(visit, USERS))
    expected = [" ".join(["w"] * int(user[1:])) for user in USERS]
    assert texts == [answer(text) for text in expected]  # type: ignore[operator]
    new = {user: asked[len(before.get(user, [])) :] for user, asked in billed(app).items()}
    assert {user: asked for user, asked in new.items() if asked} == {
        user: [int(user[1:])] * 2 * calls for user in USERS if calls
    }
