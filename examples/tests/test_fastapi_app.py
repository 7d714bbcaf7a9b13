from decimal import Decimal

from fastapi.testclient import TestClient
from fastapi_app import app
from wattfare_fastapi import get_user


def test_summary_is_billed(wattfare):
    wattfare.user(1).connect(5)
    wattfare.reply("A short one.")

    with TestClient(app) as client:
        client.post("/sign-in/ann")
        answer = client.post("/summary", json={"text": "A long text."})

    assert answer.json()["summary"] == "A short one."
    assert wattfare.billed(1) == Decimal("0.000009")


def test_anonymous_visitor_is_refused(wattfare):
    with TestClient(app) as client:
        assert client.post("/summary", json={"text": "A text."}).status_code == 401


def test_dependency_override_sets_the_user(wattfare):
    app.dependency_overrides[get_user] = lambda: wattfare.async_client().user("bob")
    wattfare.user("bob").connect(5)

    with TestClient(app) as client:
        assert client.post("/summary", json={"text": "A text."}).status_code == 200

    app.dependency_overrides.clear()
