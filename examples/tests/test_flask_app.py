from decimal import Decimal

from flask_app import app


def test_summary_is_billed(wattfare):
    client = app.test_client()
    client.post("/sign-in/ann")
    wattfare.user(1).connect(5)
    wattfare.reply("A short one.")

    answer = client.post("/summary", json={"text": "A long text."})

    assert answer.json["summary"] == "A short one."
    assert wattfare.billed(1) == Decimal("0.000009")


def test_anonymous_visitor_is_refused(wattfare):
    client = app.test_client()

    assert client.get("/").text == "Sign in to ask the model."
    assert client.post("/summary", json={"text": "A text."}).status_code == 401


def test_spent_budget_is_refused(wattfare):
    client = app.test_client()
    client.post("/sign-in/ann")
    wattfare.user(1).connect(5).spend_to("5")

    answer = client.post("/summary", json={"text": "A text."})

    assert answer.status_code == 402
    assert answer.json["error"]["code"] == "budget_exceeded"
