"""Texts that a database cannot store, at each place where a browser can send one. The answer must
be a refusal: a 500 or 503 would be a false alarm for the operator."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.people import Person, ask, live_app, post
from support.postgres import Cluster
from support.service import App, Service, run_service

PATHS = [
    "/approve/{}",
    "/approve/{}/left",
    "/funding/{}/remove",
    "/budget/connections/{}",
    "/budget/connections/{}/stop",
    "/budget/grants/{}/stop",
]
#: NUL, a byte that is not UTF-8, and half of a surrogate pair.
IDS = ["%00", "x%00y", "%ff", "%ED%A0%80"]


@pytest.fixture(scope="module")
def on_postgresql(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("on_postgresql")
    with run_service(folder, database=cluster.database()) as running:
        yield running


@pytest.fixture(params=["own_service", "on_postgresql"])
def either(request: pytest.FixtureRequest) -> Service:
    return request.getfixturevalue(request.param)


@pytest.fixture
def app(either: Service) -> Iterator[App]:
    with live_app(either) as fresh:
        yield fresh


@pytest.fixture
def person(either: Service) -> Iterator[Person]:
    with Person(either) as fresh:
        fresh.sign_in()
        yield fresh


@pytest.mark.parametrize("id_", IDS)
def test_odd_text_in_a_path_is_refused(app: App, person: Person, id_: str) -> None:
    fields = {"csrf": person.form().fields["csrf"], "decision": "allow", "cap": "1", "ready": "1"}
    for path in PATHS:
        read = person.browser.http.get(path.format(id_))
        assert read.status_code in (404, 405), path
        written = person.browser.post(path.format(id_), fields)
        # Leaving an unknown approval changes nothing.
        assert written.status_code == 404 or (written.status_code, path) == (204, PATHS[1])
    for action, body in (
        ("redeem", {"code": "c", "secret": "s"}),
        ("state", {"secret": "s"}),
    ):
        answer = post(app, f"/approvals/{id_}/{action}", app.token(), body)
        assert answer.status_code in (403, 404), action


def test_odd_text_in_a_form_is_refused(app: App, person: Person) -> None:
    url = ask(app)["url"]
    for field in ("funding", "replace", "cap", "more"):
        assert person.decide(url, **{field: "a\0b"}).status_code == 400, field
    assert person.decide(url).status_code == 303


@pytest.mark.parametrize("id_", ["\0", "\ud800", "x" * 20_000, "", 1, None, ["x"]])
def test_odd_text_in_a_passkey_id_is_refused(person: Person, id_: object) -> None:
    form = person.form()
    asked = person.challenge(form, "sign-in")
    answer = person.browser.send(form, challenge=asked["id"], credential=json.dumps({"id": id_}))
    assert answer.status_code == 403
