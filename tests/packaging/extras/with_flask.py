"""A Flask app with the adapter."""

import flask
from fake_service import fake_service
from wattfare_flask import WattfareMiddleware, get_user

app = flask.Flask(__name__)


@app.get("/hello")
def hello() -> str:
    return get_user().model("wattfare/echo").generate("Say hello.").text


with fake_service():
    wattfare = WattfareMiddleware(app, resolve_user=lambda request: request.args.get("user"))
    client = app.test_client()
    assert client.get("/hello?user=ann").text == "Hello."
    assert client.get("/hello").status_code == 401
    assert client.get("/api/wattfare/status").status_code == 401
    wattfare.close()
