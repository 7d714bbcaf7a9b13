"""A Flask app, and one more line."""

from __future__ import annotations

import flask
from wattfare_flask import WattfareMiddleware, get_user

app = flask.Flask(__name__)
wattfare = WattfareMiddleware(
    app,
    resolve_user=lambda request: request.cookies.get("user") or request.headers.get("x-user"),
)


@app.get("/spent")
def spent() -> dict[str, float]:
    """What the signed-in user has spent."""
    return {"usd": float(get_user().status().usage.monthly_usd)}
