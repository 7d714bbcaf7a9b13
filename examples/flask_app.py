"""A Flask app whose users pay for its AI calls. Open /index.html to try it.

flask --app examples/flask_app run
"""

import secrets

from flask import Flask, request, session
from wattfare_flask import WattfareMiddleware, get_user

app = Flask(__name__, static_folder="browser", static_url_path="/")
app.secret_key = secrets.token_bytes()

WattfareMiddleware(
    app,
    resolve_user=lambda request: session.get("user_id"),  # a str, an int, a UUID, or None
    request_limit=20,  # the monthly cap to ask for, in USD
)

ACCOUNTS: dict[str, int] = {}  # your table of accounts: names and ids


@app.get("/")
def home() -> str:
    if "user_id" not in session:
        return "Sign in to ask the model."
    status = get_user().status()
    if not status.connected:
        return "Connect a budget to ask the model."
    return f"{status.remaining_usd} USD left this month."


@app.post("/summary")
def summary() -> dict[str, str]:
    text = request.get_json()["text"]
    answer = get_user().model("wattfare/echo").generate(text, max_tokens=200)
    return {"summary": answer.text, "costUsd": str(answer.cost_usd)}


@app.post("/sign-in/<name>")
def sign_in(name: str) -> tuple[str, int]:
    # In a real app, check a password first.
    session["user_id"] = ACCOUNTS.setdefault(name, len(ACCOUNTS) + 1)
    return "", 204
