"""Wattfare for Flask: the users of a Flask app pay for its AI calls.

The paths are URL rules of the app, so that its ``before_request`` functions, its session and its
login manager are all there when ``resolve_user`` is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Unpack

import flask

from wattfare_mw import Request, User, Wattfare, WattfareError
from wattfare_mw.callables import given
from wattfare_mw.middleware.gate import too_large
from wattfare_mw.middleware.wrap import Options
from wattfare_mw.middleware.wsgi import WattfareWSGIMiddleware, request_of
from wattfare_mw.sessions import ResolveUser, error_response
from wattfare_mw.web import Response

__all__ = ["WattfareMiddleware", "get_user", "session_view"]

_EXTENSION = "wattfare"
# All of them: which ones a path answers to, the gate says, in the protocol's JSON.
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class WattfareMiddleware:
    """The extension: ``WattfareMiddleware(app, resolve_user=…)``, or without an app and then
    :meth:`init_app` in an application factory.

    The options are those of :class:`wattfare_mw.WattfareMiddleware`; ``resolve_user`` and a
    ``request_limit`` that is a function are given :data:`flask.request`. The secret key and the
    service's address are looked for in the app's config, too: ``WATTFARE_SECRET_KEY`` and
    ``WATTFARE_BASE_URL``.

    It is a WSGI callable as well, for a server to be pointed at or for ``app.wsgi_app``.
    """

    def __init__(self, app: flask.Flask | None = None, **options: Unpack[Options]) -> None:
        self._options = options
        self._wsgi_app: Callable[..., Iterable[bytes]] | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Give this app the paths, ``get_user()`` and answers for WattfareErrors of its views.

        Raises:
            WattfareAuthError: there is no secret key.
            TypeError, ValueError: an option is of no use; the message says which.
        """
        # As it is now: assigned to `app.wsgi_app` later, we must not call ourselves.
        self._wsgi_app = app.wsgi_app
        extension = _Extension(self._wsgi_app, **_configured(self._options, app.config))
        app.extensions[_EXTENSION] = extension
        for path in extension.paths:
            app.add_url_rule(
                path,
                endpoint=f"wattfare:{path}",
                view_func=extension.view(path),
                methods=_METHODS,
                provide_automatic_options=False,
                strict_slashes=True,
            )
        app.register_error_handler(WattfareError, _answer_error)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self._wsgi_app is None:
            raise RuntimeError("this WattfareMiddleware has no app yet: call init_app(app)")
        return self._wsgi_app(environ, start_response)


def get_user() -> User:
    """The signed-in user's budget, in a view; found once a request.

    Raises:
        WattfareAuthError: nobody is signed in; left alone, it is answered with a 401.
        RuntimeError: this app has no WattfareMiddleware.
    """
    extension = flask.current_app.extensions.get(_EXTENSION)
    if extension is None:
        raise RuntimeError("this app has no WattfareMiddleware: call init_app(app) first")
    if "_wattfare_user" not in flask.g:
        flask.g._wattfare_user = extension.user(flask.request.environ)
    return flask.g._wattfare_user


def session_view(
    client: Wattfare,
    resolve_user: ResolveUser,
    request_limit: Any = None,
    *,
    allowed_origins: Collection[str] = (),
) -> Callable[[], flask.Response]:
    """The token route alone, as a view for an app or a blueprint (``methods=["POST"]``); see
    :meth:`wattfare_mw.Wattfare.session_handler`."""
    handler = client.session_handler(
        given(resolve_user, _flask_request),
        given(request_limit, _flask_request),
        allowed_origins=allowed_origins,
    )

    def wattfare_session() -> flask.Response:
        return _flask_response(handler(request_of(flask.request.environ)))

    return wattfare_session


class _Extension(WattfareWSGIMiddleware):
    """What one app has of us."""

    def __init__(self, app: Any, **options: Unpack[Options]) -> None:
        options["resolve_user"] = given(options["resolve_user"], _flask_request)
        if "request_limit" in options:
            options["request_limit"] = given(options["request_limit"], _flask_request)
        super().__init__(app, **options)

    def view(self, path: str) -> Callable[[], flask.Response]:
        def wattfare() -> flask.Response:
            status, headers, body = self.serve(path, flask.request.environ, _read_input)
            # Not `stream_with_context`: the context is left before the stream begins.
            return flask.Response(body, status, headers, direct_passthrough=True)

        return wattfare


def _configured(options: Options, config: dict[str, Any]) -> Options:
    if options.get("client") is not None:
        return options
    return {
        **options,
        "secret_key": options.get("secret_key") or config.get("WATTFARE_SECRET_KEY"),
        "base_url": options.get("base_url") or config.get("WATTFARE_BASE_URL"),
    }


def _flask_request(_request: Request) -> flask.Request:
    return flask.request


def _read_input(limit: int) -> bytes:
    # Flask's, which remembers it: a `before_request` function may have read it already.
    body = flask.request.get_data(cache=True)
    if len(body) > limit:
        raise too_large(limit)
    return body


def _answer_error(error: WattfareError) -> flask.Response:
    return _flask_response(error_response(error))


def _flask_response(response: Response) -> flask.Response:
    return flask.Response(response.body, response.status, response.headers)
