"""Tests of an app, with Flask. Run them: pytest examples/testing"""

from __future__ import annotations

from decimal import Decimal

import pytest
from flask import Flask, request, session
from flask.testing import FlaskClient
from wattfare_flask import WattfareMiddleware, get_user

from wattfare_mw.testing import WattfareService


def create_app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "only for this example"
    WattfareMiddleware(app, resolve_user=lambda request: session.get("user_id"))

    @app.post("/summary")
    def summary() -> dict[str, str]:
        answer = get_user().model("openai/gpt-5").generate(request.get_json()["text"])
        return {"summary": answer.text}

    return app


@pytest.fixture
def client(wattfare: WattfareService) -> FlaskClient:
    client = create_app().test_client()
    with client.session_transaction() as session:
        session["user_id"] = "ann"
    return client


def test_summary_is_billed(client: FlaskClient, wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.reply("Ann is well.")

    response = client.post("/summary", json={"text": "How is Ann today?"})

    assert response.json == {"summary": "Ann is well."}
    assert wattfare.billed("ann") == Decimal("0.00001")


def test_spent_budget_is_refused(client: FlaskClient, wattfare: WattfareService) -> None:
    wattfare.user("ann").connect("0.01").spend_to("0.01")

    response = client.post("/summary", json={"text": "How is Ann today?"})

    assert response.status_code == 402
    assert response.get_json()["error"]["code"] == "budget_exceeded"
