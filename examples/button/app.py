"""The button in plain HTML, with htmx and with React.

    WATTFARE_SECRET_KEY=sk_… WATTFARE_PUBLISHABLE_KEY=pk_… \\
    WATTFARE_BASE_URL=http://localhost:8787 flask --app examples/button/app run

Then open http://localhost:5000/plain or /htmx. The htmx page needs `vendor/htmx.js` beside this
file, and the React page `vendor/react.js`: see react.jsx.
"""

import os
import secrets
from pathlib import Path

import flask
from wattfare_flask import WattfareMiddleware, get_user

KEY = os.environ["WATTFARE_PUBLISHABLE_KEY"]
SERVICE = os.environ["WATTFARE_BASE_URL"]
VENDOR = os.environ.get("VENDOR", Path(__file__).parent / "vendor")

app = flask.Flask(__name__, template_folder=Path(__file__).parent)
WattfareMiddleware(
    app,
    resolve_user=lambda request: request.cookies.get("visitor"),
    client_path="/wattfare.js",  # and /wattfare-return, the page to return to
    account_label="A visitor of the examples",
    request_limit=0.01,
)


@app.get("/<any(plain, htmx, react):name>")
def page(name: str) -> flask.Response:
    html = flask.render_template(f"{name}.html", key=KEY, service=SERVICE)
    answer = flask.make_response(html)
    # The button needs nothing else.
    answer.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:;"
        f" connect-src 'self' {SERVICE}"
    )
    answer.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    if "visitor" not in flask.request.cookies:
        answer.set_cookie("visitor", secrets.token_hex(16), httponly=True, samesite="Lax")
    return answer


@app.post("/ask")
def ask() -> flask.Response:
    """Answer with an HTML fragment for htmx."""
    said = get_user().model("wattfare/echo").generate(flask.request.form["question"])
    answer = flask.make_response(flask.render_template_string("{{ text }}", text=said.text))
    answer.headers["HX-Trigger"] = "wattfare:refresh"  # reload the budget
    return answer


@app.get("/plain.js")
def plain() -> flask.Response:
    return flask.send_file(Path(__file__).parent / "plain.js")


@app.get("/vendor/<path:name>")
def vendor(name: str) -> flask.Response:
    return flask.send_from_directory(VENDOR, name)
