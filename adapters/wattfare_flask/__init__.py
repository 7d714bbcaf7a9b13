"""Wattfare for Flask: the users of a Flask app pay for its AI calls.

The paths are URL rules of the app. So ``resolve_user`` can use the app's ``before_request``
functions, its session and its login manager.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import Context
from functools import cached_property
from typing import Any, Unpack
from urllib.parse import unquote

try:
    import flask
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise ModuleNotFoundError(
        "Flask is not installed. Type: pip install 'wattfare-mw[flask]'", name="flask"
    ) from None
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException

from wattfare_mw.framework import (
    AccountLabelOption,
    AppCors,
    CurrentRequest,
    Options,
    Request,
    RequestLimitOption,
    ResolveUser,
    Response,
    User,
    Wattfare,
    WattfareError,
    WattfareWSGIMiddleware,
    adapt_function,
    adapt_options,
    check_options,
    hide_secret_key,
    read_limited,
    read_up_to,
    request_from_environ,
    respond_to_error,
)

__all__ = ["WattfareMiddleware", "get_user", "session_view"]

_EXTENSION = "wattfare"
#: The start of the names of our endpoints.
_ENDPOINT = "wattfare:"
# Flask converts these exceptions to responses, so `resolve_user` can call `abort(403)` as in a
# view.
_FLASK_ANSWERS = (HTTPException,)


class WattfareMiddleware:
    """The extension: ``WattfareMiddleware(app, resolve_user=…)``. In an application factory, create
    it without an app, and call :meth:`init_app`.

    The options are those of :class:`wattfare_mw.WattfareMiddleware`. Functions in the options, such
    as ``resolve_user``, get :data:`flask.request`. If a function calls ``abort()``, the app's error
    handlers answer. The app's config may also set ``WATTFARE_SECRET_KEY`` and
    ``WATTFARE_BASE_URL``.

    The extension is also a WSGI app, for a server or for ``app.wsgi_app``. It calls the value that
    ``app.wsgi_app`` had at the time of :meth:`init_app`.
    """

    def __init__(self, app: flask.Flask | None = None, **options: Unpack[Options]) -> None:
        hide_secret_key(options)
        check_options(options)
        self._options = options
        self._extensions: list[_Extension] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Add the paths, ``get_user()`` and an error handler for WattfareErrors to an app.

        Raises:
            WattfareAuthError: there is no secret key.
            TypeError, ValueError: an option is invalid.
        """
        # Keep the current `wsgi_app`: if the extension is assigned to `app.wsgi_app` later, it must
        # not call itself.
        extension = _Extension(app.wsgi_app, **_configured(self._options, app.config))
        app.extensions[_EXTENSION] = extension
        # With host matching, a rule without a host matches no host.
        host = "<host>" if app.url_map.host_matching else None
        for path in extension.paths:
            endpoint = f"{_ENDPOINT}{path}"
            # `add_url_rule` needs a list of methods, but the gate answers any method in the
            # protocol's JSON.
            app.url_map.add(
                app.url_rule_class(path, endpoint=endpoint, host=host, strict_slashes=True)
            )
            app.endpoint(endpoint)(extension.view(path))
        if extension.has_current_user:
            app.wsgi_app = extension.entry
            # This must be the first function, because an earlier one that answers would skip it.
            app.before_request_funcs.setdefault(None, []).insert(0, extension.keep_context)
        app.url_value_preprocessor(_exempt_from_csrf)
        app.after_request(extension.answer_below)
        if (
            WattfareError not in app.error_handler_spec[None][None]
        ):  # the app's own handler takes precedence
            app.register_error_handler(WattfareError, _answer_error)
        self._extensions.append(extension)

    def close(self) -> None:
        """Close our own connections of all apps. This also happens at exit."""
        for extension in self._extensions:
            extension.close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if len(self._extensions) != 1:
            raise RuntimeError(
                f"this WattfareMiddleware has {len(self._extensions)} apps. To use it as a WSGI"
                " app, call init_app(app) for exactly one app, or serve the Flask app itself"
            )
        return self._extensions[0].entry(environ, start_response)


def get_user() -> User:
    """A handle for the signed-in user, in a view.

    Raises:
        WattfareAuthError: no user is signed in. If the view does not handle the error, the response
            is a 401.
        RuntimeError: this app has no WattfareMiddleware.
    """
    extension = flask.current_app.extensions.get(_EXTENSION)
    if extension is None:
        raise RuntimeError("this app has no WattfareMiddleware: call init_app(app) first")
    return extension.user(flask.request.environ)


def session_view(
    client: Wattfare,
    resolve_user: ResolveUser,
    request_limit: RequestLimitOption = None,
    *,
    account_label: AccountLabelOption = None,
    allowed_origins: Collection[str] = (),
) -> Callable[[], flask.Response]:
    """Create a view for an app or a blueprint: a token route (``methods=["POST"]``). See
    :meth:`wattfare_mw.Wattfare.session_handler`."""
    handler = client.session_handler(
        adapt_function(resolve_user, _flask_request),
        adapt_function(request_limit, _flask_request),
        account_label=adapt_function(account_label, _flask_request),
        allowed_origins=allowed_origins,
        let_through=_FLASK_ANSWERS,
        app_cors=_FindCors(),
    )

    def wattfare_session() -> flask.Response:
        return _answer(handler(request_from_environ(flask.request.environ)))

    return wattfare_session


class _Extension(WattfareWSGIMiddleware):
    """The middleware of one app."""

    let_through = _FLASK_ANSWERS

    def __init__(self, app: Any, **options: Unpack[Options]) -> None:
        self.find_app_cors = _FindCors()
        super().__init__(app, **adapt_options(options, _flask_request))

    @cached_property
    def entry(self) -> Any:
        """The WSGI app to call for a request."""
        return self.around(self.app)

    def context_of(self, request: CurrentRequest) -> Context | None:
        if flask.has_request_context() and flask.request.environ is request.raw:
            return None
        return request.context

    def answer_below(self, response: flask.Response) -> flask.Response:
        """Answer a path that an OpenAI client requests, if the app has no rule for it."""
        request = flask.request
        if (
            response.status_code == 404
            and request.url_rule is None
            and self.answers_unrouted(request.path)
        ):
            return self.view(request.path)()
        return response

    def view(self, path: str) -> Callable[..., flask.Response]:
        def wattfare(**_of_the_rule: str) -> flask.Response:
            status, headers, body = self.serve(path, flask.request.environ, _read_input)
            # `stream_with_context` does not work here, because the context ends before the stream
            # begins.
            return _flask_response(status, headers, body)

        return wattfare


def _exempt_from_csrf(endpoint: str | None, _values: object) -> None:
    """Exempt our paths from Flask-WTF's CSRF protection. They have their own check against other
    sites, and their clients have no CSRF token. This runs before Flask-WTF's check, which may be
    added to the app after us."""
    if endpoint is not None and endpoint.startswith(_ENDPOINT):
        csrf: Any = flask.current_app.extensions.get("csrf")
        if hasattr(csrf, "exempt"):
            csrf.exempt(f"{__name__}.wattfare")


class _FindCors:
    """Finds what the app's Flask-CORS allows for a path. It reads each setting once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, AppCors]] = {}

    def __call__(self, _request: Request) -> AppCors | None:
        core = sys.modules.get("flask_cors.core")
        # Older versions of Flask-CORS have another name.
        if core is None or not hasattr(core, "try_match_pattern"):
            return None
        path = unquote(flask.request.path)
        for pattern, options in _flask_cors_rules():
            if isinstance(options, dict):  # Flask-CORS before version 6.0.4
                return None
            if core.try_match_pattern(path, pattern, caseSensitive=True):
                return self._of(core, options)
        return None

    def _of(self, core: Any, options: Any) -> AppCors:
        known = self._known.get(id(options))
        if known is not None:
            return known[1]

        def allows(origin: str) -> bool:
            sent = core.get_cors_headers(options, Headers({"Origin": origin}), "GET")
            return "Access-Control-Allow-Origin" in sent

        cors = AppCors(allows, credentials=options.supports_credentials, answers=True)
        # Flask-CORS does not add headers that a response already has, so our headers are not
        # repeated.
        cors.answers = cors.allows_all
        # Keep the options alive, so that their id stays unique.
        self._known[id(options)] = options, cors
        return cors


def _flask_cors_rules() -> Iterator[tuple[Any, Any]]:
    """The patterns and the options of Flask-CORS for this request. Flask-CORS keeps them only in
    its ``after_request`` functions."""
    functions = flask.current_app.after_request_funcs
    for scope in (*flask.request.blueprints, None):
        for function in reversed(functions.get(scope, ())):
            if function.__module__ == "flask_cors.extension":
                yield from inspect.getclosurevars(function).nonlocals.get("resources", ())


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
    return read_limited(min(limit, flask.request.max_content_length or limit), _read_some)


def _read_some(size: int) -> bytes:
    request = flask.request
    if request.content_length is None:  # the length is unknown
        body = read_up_to(size, request.stream.read)
        if body:
            return body
    # A `before_request` function may have read the body already. Flask caches it.
    return request.get_data()


def _answer_error(error: WattfareError) -> flask.Response:
    return _answer(respond_to_error(error))


def _answer(answer: Response) -> flask.Response:
    return _flask_response(answer.status, answer.headers, [answer.body])


def _flask_response(status: str | int, headers: Any, body: Iterable[bytes]) -> flask.Response:
    response = flask.Response(body, status)
    # Replace all headers: Flask adds a content type to an empty response, and a length of 0 to the
    # response to a HEAD.
    response.headers = Headers(headers)
    response.automatically_set_content_length = False
    return response
