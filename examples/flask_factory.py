"""Flask with an application factory, a blueprint, and sign-in by flask-login.

flask --app examples/flask_factory run
"""

# flask-login has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false
import secrets
from collections.abc import Iterator

from flask import Blueprint, Flask, Request, Response, request
from flask_login import LoginManager, UserMixin, current_user, login_user
from wattfare_flask import WattfareMiddleware, get_user

from wattfare_mw import WattfareError, is_not_connected


def signed_in(request: Request) -> str | None:
    user_id: str | None = current_user.get_id()  # None for an anonymous user
    return user_id


wattfare = WattfareMiddleware(resolve_user=signed_in)
login_manager = LoginManager()
pages = Blueprint("pages", __name__)


def create_app() -> Flask:
    app = Flask(__name__)
    app.secret_key = secrets.token_bytes()
    login_manager.init_app(app)
    wattfare.init_app(app)
    app.register_blueprint(pages)
    return app


class User(UserMixin):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self.id = name


@login_manager.user_loader  # type: ignore
def load_user(name: str) -> User:
    return User(name)


@pages.post("/sign-in/<name>")
def sign_in(name: str) -> tuple[str, int]:
    # In a real app, check a password first.
    login_user(User(name))
    return "", 204


@pages.post("/story")
def story() -> Response:
    stream = get_user().model("wattfare/echo").stream(request.get_json()["about"])

    def text() -> Iterator[str]:
        with stream:  # closing the stream stops the model
            yield from stream.text_stream

    return Response(text(), mimetype="text/plain")


@pages.app_errorhandler(WattfareError)
def explain(error: WattfareError) -> tuple[str, int]:
    text = "Connect a budget first." if is_not_connected(error) else error.message
    return text, error.http_status
