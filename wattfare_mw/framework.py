"""The contract between Wattfare and the adapters of web frameworks.

An adapter imports only from this module. The names here do not change between releases.
``docs/custom-adapter.md`` shows how to use them. Each name is imported on first use, so an adapter
for a WSGI framework does not load the ASGI code.

An adapter subclasses one of these classes:

- :class:`WattfareASGIMiddleware`: for an ASGI app.
- :class:`WattfareWSGIMiddleware`: for a WSGI app.
- :class:`WattfareAsyncAdapter`: for an async framework with its own interface.

These classes have the following methods and attributes for adapters:

- ``paths``: the paths to answer. An adapter for a framework with its own routes registers them.
- ``serve(path, …)``: answers a request to one of these paths.
- ``respond(request, …)``: the same as ``serve()``, for a framework with its own responses. It takes
  a :class:`Request` and returns an :class:`Answer` or an :class:`AsyncAnswer`.
- ``answers_unrouted(path)``: True if the adapter must answer this path when the app has no route
  for it.
- ``openai_base``: the path of an OpenAI client's base URL.
- ``user(scope)`` or ``user(environ)``: a handle for the user who makes a request.
- ``user_of(request)``: the same as ``user()``, for a :class:`Request`.
- ``user_sync(user)``: a handle for the same user, for sync code (ASGI only).
- ``close()`` or ``aclose()``: closes the connections to the service.
- ``named_paths``: a dict from the name of each path's option to the path.
- ``let_through``: a class attribute. The exceptions that the framework converts to responses
  itself.

A middleware that wraps the app needs no code for the option ``current_user`` (see
:data:`wattfare_mw.current_user`). For other adapters, the base classes have:

- ``has_current_user``: True if the option is set.
- ``around(app)``: wraps an ASGI or WSGI app so that each request has a current user. Use it if the
  framework accepts middleware. Without the option, it returns the app unchanged.
- ``current_request(request)``: a :class:`CurrentRequest`, for a framework with its own requests.
  ``request`` is the argument of ``user_of()``, or a function that returns it. Under ASGI, call this
  on the event loop of the request.
- ``current_request_class``: a class attribute. The class of the objects that ``current_request()``
  returns.
- ``keep_context()``: saves the framework's context variables (WSGI only). Call it in each request,
  after the framework has set them. A streamed body may run without these variables. If the current
  user is first used in such a body, ``resolve_user`` runs with the saved variables. An adapter can
  override ``context_of(request)`` to choose when the saved variables are used.

A :class:`CurrentRequest` has these methods:

- ``with request.active():`` the code in this block, and the tasks that it starts, belong to the
  request. The request does not end with the block.
- ``iterate(body)``, ``iterate_async(body)``: wraps a streamed body, so that the code that creates
  it belongs to the request. The request ends with the body. Close the wrapped body if it is not
  read to its end.
- ``end()``: ends the request. From then on, there is no current user. Call it for a response that
  is not a stream, and if an error prevents a response. Further calls do nothing.

The options of the middleware:

- :class:`Options`: the names and types of the options, for ``**options: Unpack[Options]``.
- :data:`ResolveUser`, :data:`RequestLimitOption`, :data:`AccountLabelOption`: the types of the
  options that may be functions of a request.
- :func:`adapt_options`: wraps the functions in the options, so that they get the framework's own
  request.
- :func:`adapt_function`: the same as :func:`adapt_options`, for one function.
- :func:`check_options`: raises ``TypeError`` for an option that does not exist. The base classes
  call it, too.
- :func:`unknown_option`: the message of this ``TypeError``, for an adapter that renames the
  options.
- :func:`hide_secret_key`: keeps the secret key out of tracebacks.

Requests, bodies and errors:

- :func:`request_from_scope`: the :class:`Request` of an ASGI scope.
- :func:`below_mount`: the path of a scope, relative to the point where the app is mounted.
- :func:`request_from_environ`: the :class:`Request` of a WSGI environ.
- :data:`Scope`, :data:`Receive`, :data:`Send`: the types of ASGI.
- :func:`read_limited`: reads a body, and refuses one that is too large (WSGI).
- :func:`read_up_to`: reads a number of bytes from a stream whose ``read`` may return fewer (WSGI).
- :func:`respond_to_error`: the response to a WattfareError that a view has not handled.
- :data:`LetThrough`: the type of ``let_through``.

The app's own CORS settings:

- ``find_app_cors``: an attribute of the base classes: a function that returns what the app's CORS
  middleware allows.
- :class:`AppCors`: the result of ``find_app_cors``.
- :data:`FindAppCors`: the type of ``find_app_cors``.

For an OpenAPI document that shows the paths:

- ``named_paths``: see above.
- :data:`ERROR_DESCRIPTIONS`: descriptions of the errors of a request that spends a user's budget.
- :data:`CHAT_BODY`: the JSON schema of an inference request.
- :func:`json_fields`: the JSON fields of :class:`ConnectionStatus` or :class:`CreatedSession`.

This module also has the names of :mod:`wattfare_mw` that an adapter needs: :class:`Wattfare`,
:class:`AsyncWattfare`, :class:`User`, :class:`AsyncUser`, :class:`ConnectionStatus`,
:class:`CreatedSession`, :class:`Request`, :class:`Response` and :class:`WattfareError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import names_from

if TYPE_CHECKING:
    from .api_docs import CHAT_BODY, ERROR_DESCRIPTIONS, json_fields
    from .app_functions import adapt_function
    from .client import AsyncWattfare, Wattfare
    from .current import CurrentRequest
    from .error_responses import LetThrough, respond_to_error
    from .errors import WattfareError
    from .handles import AsyncUser, User
    from .middleware.answers import Answer, AsyncAnswer
    from .middleware.asgi import (
        Receive,
        Scope,
        Send,
        WattfareASGIMiddleware,
        WattfareAsyncAdapter,
        below_mount,
        request_from_scope,
    )
    from .middleware.options import (
        Options,
        adapt_options,
        check_options,
        hide_secret_key,
        unknown_option,
    )
    from .middleware.wsgi import (
        WattfareWSGIMiddleware,
        read_limited,
        read_up_to,
        request_from_environ,
    )
    from .origins import AppCors, FindAppCors
    from .sessions import AccountLabelOption, RequestLimitOption
    from .types import ConnectionStatus, CreatedSession
    from .users import ResolveUser
    from .web import Request, Response

__all__ = [
    "CHAT_BODY",
    "ERROR_DESCRIPTIONS",
    "AccountLabelOption",
    "Answer",
    "AppCors",
    "AsyncAnswer",
    "AsyncUser",
    "AsyncWattfare",
    "ConnectionStatus",
    "CreatedSession",
    "CurrentRequest",
    "FindAppCors",
    "LetThrough",
    "Options",
    "Receive",
    "Request",
    "RequestLimitOption",
    "ResolveUser",
    "Response",
    "Scope",
    "Send",
    "User",
    "Wattfare",
    "WattfareASGIMiddleware",
    "WattfareAsyncAdapter",
    "WattfareError",
    "WattfareWSGIMiddleware",
    "adapt_function",
    "adapt_options",
    "below_mount",
    "check_options",
    "hide_secret_key",
    "json_fields",
    "read_limited",
    "read_up_to",
    "request_from_environ",
    "request_from_scope",
    "respond_to_error",
    "unknown_option",
]

_HOMES = {
    "api_docs": ("CHAT_BODY", "ERROR_DESCRIPTIONS", "json_fields"),
    "app_functions": ("adapt_function",),
    "client": ("AsyncWattfare", "Wattfare"),
    "current": ("CurrentRequest",),
    "error_responses": ("LetThrough", "respond_to_error"),
    "errors": ("WattfareError",),
    "handles": ("AsyncUser", "User"),
    "middleware.answers": ("Answer", "AsyncAnswer"),
    "middleware.asgi": (
        "Receive",
        "Scope",
        "Send",
        "WattfareASGIMiddleware",
        "WattfareAsyncAdapter",
        "below_mount",
        "request_from_scope",
    ),
    "middleware.options": (
        "Options",
        "adapt_options",
        "check_options",
        "hide_secret_key",
        "unknown_option",
    ),
    "middleware.wsgi": (
        "WattfareWSGIMiddleware",
        "read_limited",
        "read_up_to",
        "request_from_environ",
    ),
    "origins": ("AppCors", "FindAppCors"),
    "sessions": ("AccountLabelOption", "RequestLimitOption"),
    "types": ("ConnectionStatus", "CreatedSession"),
    "users": ("ResolveUser",),
    "web": ("Request", "Response"),
}
__getattr__, __dir__ = names_from(globals(), _HOMES)
