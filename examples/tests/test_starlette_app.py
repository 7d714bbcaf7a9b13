from decimal import Decimal

from starlette.testclient import TestClient
from starlette_app import app


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
        assert client.get("/").text == "Sign in to ask the model."
        assert client.post("/summary", json={"text": "A text."}).status_code == 401
