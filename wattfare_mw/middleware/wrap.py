"""``WattfareMiddleware``: its options, and which of the two kinds an app takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Required, Self, TypedDict

from ..callables import given
from ..client import AsyncWattfare, Wattfare, client_for
from ..sessions import LetThrough, ResolveUser
from ..transport import hidden
from ..web import Request
from .gate import Gate

TOKEN_PATH = "/api/wattfare-token"  # noqa: S105
INFERENCE_PATH = "/api/wattfare/chat/completions"
STATUS_PATH = "/api/wattfare/status"


class Options(TypedDict, total=False):
    """The options of :class:`WattfareMiddleware`, for those who hand them on."""

    resolve_user: Required[ResolveUser]
    client: NotRequired[Wattfare | AsyncWattfare | None]
    secret_key: NotRequired[str | None]
    base_url: NotRequired[str | None]
    token_path: NotRequired[str | None]
    inference_path: NotRequired[str | None]
    status_path: NotRequired[str | None]
    request_limit: NotRequired[Any]
    models: NotRequired[Iterable[str] | None]
    allow_grants: NotRequired[bool]
    allowed_origins: NotRequired[Iterable[str]]
    max_body_bytes: NotRequired[int]
    on_usage: NotRequired[Callable[..., Any] | None]


def in_framework(options: Options, request_of: Callable[[Request], Any]) -> Options:
    """For an adapter: the options, with their functions given the framework's own request, which
    ``request_of`` makes of ours. The secret key among them is hidden in the given ones, too."""
    hide_key(options)
    changed = options.copy()
    # What is missing stays so, and the middleware says it.
    if "resolve_user" in options:
        changed["resolve_user"] = given(options["resolve_user"], request_of)
    if "request_limit" in options:
        changed["request_limit"] = given(options["request_limit"], request_of)
    return changed


def hide_key(options: Options | dict[str, Any]) -> None:
    """Hide the secret key that may be among these options, where they are."""
    if "secret_key" in options:
        options["secret_key"] = hidden(options["secret_key"])


class WattfareMiddleware:
    """An existing ASGI or WSGI app, whose users pay for its AI calls.

    Args:
        app: the app. What kind it is, is seen from it.
        resolve_user: gives the app's own id of the user who makes a request, or None where nobody
            is signed in. Given a :class:`wattfare_mw.Request`; may be asynchronous.
        interface: ``"asgi"`` or ``"wsgi"``, where it cannot be seen.
        client: a :class:`Wattfare` or an :class:`AsyncWattfare`, which stays the app's to close;
            or else
        secret_key: the app's secret key; else from ``WATTFARE_SECRET_KEY``.
        base_url: the service's address; else from ``WATTFARE_BASE_URL``.
        token_path: POST: a session token for the user's browser. None switches a path off.
        inference_path: POST: a call of a model. An OpenAI client's ``base_url`` is what comes
            before its ``/chat/completions``; GET of ``/models`` there lists the models.
        status_path: GET: the user's connection.
        request_limit: the monthly cap to ask for, in USD, or a function of the request that
            gives it; None leaves it to the user.
        models: the models that the app allows, ids and globs (``"openai/*"``); None: any.
        allow_grants: may a one-time grant (``X-Wattfare-Grant``) pay in a user's place?
        allowed_origins: other sites' origins whose pages may call, with the user's cookies.
        max_body_bytes: the largest body of an inference call.
        on_usage: called after each inference call that was not refused, with the user's id
            (None for a grant), the model, its :class:`TokenUsage` and its cost in USD (None
            where not told); may be asynchronous.

    Raises:
        WattfareAuthError: there is no secret key.
        TypeError, ValueError: an option is of no use; the message says which.
    """

    if not TYPE_CHECKING:  # to a reader of types, `__init__` says it all

        def __new__(
            cls, app: Any, *, interface: Literal["auto", "asgi", "wsgi"] = "auto", **_options: Any
        ) -> Self:
            _options.clear()  # `__init__` has its own: a traceback would show the secret key
            if cls is not WattfareMiddleware:
                return super().__new__(cls)
            if interface == "auto":
                interface = interface_of(app)
            if interface == "asgi":
                from .asgi import WattfareASGIMiddleware as Kind
            elif interface == "wsgi":
                from .wsgi import WattfareWSGIMiddleware as Kind
            else:
                raise ValueError("interface is 'auto', 'asgi' or 'wsgi'")
            return super().__new__(Kind)

    def __init__(
        self,
        app: Any,
        *,
        resolve_user: ResolveUser,
        interface: Literal["auto", "asgi", "wsgi"] = "auto",
        client: Wattfare | AsyncWattfare | None = None,
        secret_key: str | None = None,
        base_url: str | None = None,
        token_path: str | None = TOKEN_PATH,
        inference_path: str | None = INFERENCE_PATH,
        status_path: str | None = STATUS_PATH,
        request_limit: Any = None,
        models: Iterable[str] | None = None,
        allow_grants: bool = False,
        allowed_origins: Iterable[str] = (),
        max_body_bytes: int = 20 * 2**20,
        on_usage: Callable[..., Any] | None = None,
    ) -> None:
        secret_key = hidden(secret_key)
        self.app = app
        self._client, self._owns_client = client_for(
            self._client_kind, client, secret_key, base_url
        )
        self._gate = Gate(
            self._client._service,
            resolve_user=resolve_user,
            token_path=token_path,
            inference_path=inference_path,
            status_path=status_path,
            request_limit=request_limit,
            models=models,
            allow_grants=allow_grants,
            allowed_origins=allowed_origins,
            max_body_bytes=max_body_bytes,
            on_usage=on_usage,
            let_through=self._let_through,
        )
        self._routes = self._gate.routes
        self._show_interface()

    @property
    def paths(self) -> Iterable[str]:
        """The paths that are ours."""
        return self._routes

    # Each kind of middleware drives the client of its kind.
    _client_kind: Any
    # For an adapter, whose framework answers some exceptions itself.
    _let_through: LetThrough = ()

    def _show_interface(self) -> None:
        """For a kind whose ``__call__`` does not show by itself which interface it has."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError  # pragma: no cover

    def __repr__(self) -> str:
        # A traceback's local variables may show one that could not be made.
        return f"{type(self).__name__}({getattr(self, 'app', None)!r})"


def interface_of(app: Any) -> Literal["asgi", "wsgi"]:
    """Which interface an app has.

    Raises:
        TypeError: it cannot be told.
    """
    if isinstance(app, WattfareMiddleware):
        return "asgi" if inspect.iscoroutinefunction(app.__call__) else "wsgi"
    function = app
    while isinstance(function, functools.partial):
        function = function.func  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    if inspect.isclass(function) or not callable(function):  # pyright: ignore[reportUnknownArgumentType]
        raise TypeError(f"{app!r} is no app but a {type(app).__name__}: give the app itself")
    method = getattr(function, "__call__", None)  # noqa: B004
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method):
        return "asgi"
    takes_two, takes_three = _takes(app, 2), _takes(app, 3)
    if takes_two == takes_three:
        raise TypeError(
            f"whether {app!r} is an ASGI or a WSGI app cannot be seen from it: say"
            " interface='asgi' or interface='wsgi'"
        )
    return "wsgi" if takes_two else "asgi"


def _takes(app: Any, count: int) -> bool:
    try:
        inspect.signature(app).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True
