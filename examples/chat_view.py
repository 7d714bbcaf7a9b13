"""The client in a Flask view, without the middleware, with a stream and errors.

flask --app examples/chat_view run
"""

import secrets
from collections.abc import Iterator

from flask import Flask, Request, Response, request, session
from flask.typing import ResponseReturnValue
from wattfare_flask import session_view

from wattfare_mw import Wattfare, WattfareError, is_budget_exceeded, is_not_connected

app = Flask(__name__)
app.secret_key = secrets.token_bytes()
wf = Wattfare()  # reads WATTFARE_SECRET_KEY


def signed_in(request: Request) -> str | None:
    return session.get("user_id")


# The token route alone.
app.add_url_rule("/wattfare-token", view_func=session_view(wf, signed_in, 20), methods=["POST"])


@app.post("/chat")
def chat() -> ResponseReturnValue:
    if "user_id" not in session:
        return {"do": "sign in"}, 401
    model = wf.user(session["user_id"]).model("wattfare/echo")
    try:
        stream = model.stream(messages=request.get_json()["messages"])  # sends the call
    except WattfareError as error:
        if is_not_connected(error):
            return {"do": "connect a budget"}, 402
        if is_budget_exceeded(error):
            return {"do": "raise the cap"}, 402
        return error.to_wire(), error.http_status

    def text() -> Iterator[str]:
        with stream:  # closing the stream stops the model
            try:
                yield from stream.text_stream
            except WattfareError as error:  # the response has begun: its status is fixed
                yield f"\n[{error.message}]"

    return Response(text(), mimetype="text/plain")


@app.post("/sign-in/<name>")
def sign_in(name: str) -> tuple[str, int]:
    # In a real app, check a password first.
    session["user_id"] = name
    return "", 204
