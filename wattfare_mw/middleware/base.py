"""The base of the ASGI and the WSGI middleware: the options, the client and the gate."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from functools import cached_property
from typing import Any, Literal

from ..client import AsyncWattfare, Wattfare, client_for, in_request, runner_of
from ..current import CurrentRequest, Driver
from ..error_responses import LetThrough
from ..flow import Flow
from ..origins import FindAppCors
from ..sessions import AccountLabelOption, RequestLimitOption
from ..transport import hidden
from ..users import ResolveUser
from ..web import Request
from .gate import Gate
from .options import HEARTBEAT_SECONDS, INFERENCE_PATH, STATUS_PATH, TOKEN_PATH, OnUsage

#: The maximum number of nested changes of one attribute of the app that can be undone.
MAX_PREVIOUS = 8
_MISSING = object()


class Middleware:
    """The base of the ASGI and the WSGI middleware. See :class:`wattfare_mw.WattfareMiddleware`."""

    # The attribute that each request needs has a slot, because access to `__dict__` is slow in a
    # class with `__getattr__`.
    __slots__ = ("__dict__", "__weakref__", "_app_and_range")

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
        client_path: str | None = None,
        request_limit: RequestLimitOption = None,
        account_label: AccountLabelOption = None,
        models: Iterable[str] | None = None,
        allow_grants: bool = False,
        allowed_origins: Iterable[str] = (),
        max_body_bytes: int = 20 * 2**20,
        max_calls_per_user: int | None = None,
        on_usage: OnUsage | None = None,
        heartbeat: float | None = HEARTBEAT_SECONDS,
        current_user: bool = False,
    ) -> None:
        secret_key = hidden(secret_key)
        for name, switch in {"allow_grants": allow_grants, "current_user": current_user}.items():
            # A text such as "no" would turn the option on.
            if not isinstance(switch, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"{name} must be True or False")
        self.has_current_user = current_user
        self.app = app
        own, self._owns_client = client_for(self._client_kind, client, secret_key, base_url)
        # The handles that `user()` returns are also used inside a request.
        self._client = in_request(own)
        self._runner = runner_of(self._client)
        self._gate = Gate(
            self._runner.caller,
            resolve_user=resolve_user,
            token_path=token_path,
            inference_path=inference_path,
            status_path=status_path,
            client_path=client_path,
            request_limit=request_limit,
            account_label=account_label,
            models=models,
            allow_grants=allow_grants,
            allowed_origins=allowed_origins,
            max_body_bytes=max_body_bytes,
            max_calls_per_user=max_calls_per_user,
            on_usage=on_usage,
            heartbeat=heartbeat,
            let_through=self.let_through,
            app_cors=self.find_app_cors,
        )
        self._routes = self._gate.routes
        # One tuple, so that a request looks it up once.
        self._app_and_range = (self.around(app), *self._range())
        self._show_interface()

    # The middleware passes on the attributes of the app, as in `app.dependency_overrides = …`. It
    # does not pass on names with an underscore, because copy, pickle and servers look for them.

    def __getattr__(self, name: str) -> Any:
        app = None if name.startswith("_") else self.__dict__.get("app")
        if app is None:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            )
        return getattr(app, name)

    def _range(self) -> tuple[str, str]:
        """The first and the last of our paths, in alphabetical order. A path outside of this range
        is not ours, and two comparisons are faster than a lookup. The caller compares with the last
        path first, because most paths of apps come after "/api"."""
        ends = list(self._routes)
        base = self._gate.base
        if base is not None:
            ends += (f"{base}/", f"{base}0")  # "0" is the character after "/"
        return min(ends, default="\1"), max(ends, default="\0")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "app" and "_routes" in self.__dict__:
            self._app_and_range = (self.around(value), *self._app_and_range[1:])
        if self._is_attribute_of_app(name):
            previous = _own_value(self.app, name)
            setattr(self.app, name, value)
            self._previous(name).append(previous)
        else:
            object.__setattr__(self, name, value)

    # pytest's `monkeypatch` and unittest's `patch.object` find the attribute of the app neither in
    # our `__dict__` nor in our class. To undo a change, they delete the attribute, as if its old
    # value were behind it. So the old value returns.

    def __delattr__(self, name: str) -> None:
        if not self._is_attribute_of_app(name):
            object.__delattr__(self, name)
            return
        previous = self._previous(name)
        value = previous.pop() if previous else _MISSING
        if value is _MISSING:
            delattr(self.app, name)
        else:
            setattr(self.app, name, value)

    def _previous(self, name: str) -> deque[Any]:
        """The last values that were replaced through the middleware."""
        changed: dict[str, deque[Any]] = self.__dict__.setdefault("_changed", {})
        return changed.setdefault(name, deque(maxlen=MAX_PREVIOUS))

    def _is_attribute_of_app(self, name: str) -> bool:
        own = self.__dict__
        return not (
            name.startswith("_") or name in own or "app" not in own or hasattr(type(self), name)
        ) and (hasattr(self.app, name) or name in own.get("_changed", ()))

    def around(self, app: Any) -> Any:
        """Wrap the app, so that its requests have a current user. Without the option
        ``current_user``, return the app unchanged. For adapters that do not wrap the app."""
        if self.has_current_user and app is not None:
            return self._with_current_user(app)
        return app

    @property
    def _called_app(self) -> Any:
        return self._app_and_range[0]

    def current_request(self, request: Request | Callable[[], Request]) -> CurrentRequest:
        """Create a request whose user can be the current user. For frameworks with their own
        requests.

        Args:
            request: the argument of ``user_of()``, or a function that returns it when it is needed.
        """
        raise NotImplementedError  # pragma: no cover

    def _with_current_user(self, app: Any) -> Any:
        raise NotImplementedError  # pragma: no cover

    def request_from(self, raw: Any) -> Request:
        raise NotImplementedError  # pragma: no cover

    def _identify(self, raw: Any) -> Flow[str]:
        if callable(raw):
            raw = raw()
        return self._gate.identify(raw if isinstance(raw, Request) else self.request_from(raw))

    # The clients of `current_user` and `current_async_user`.
    _sync_client: Any
    _async_client: Any

    @cached_property
    def _driver(self) -> Driver:
        return Driver(
            self._identify,
            self.context_of,
            lambda: self._sync_client,
            lambda: self._async_client,
        )

    def keep_context(self) -> None:
        """Save a copy of the current context. If the code that first needs the user runs in another
        context, ``resolve_user`` is called in this copy. See ``context_of``. Adapters call this
        method.
        """
        request = CurrentRequest.of(self._driver)
        if request is not None:
            request.context = copy_context()

    def context_of(self, request: CurrentRequest) -> Context | None:
        """The context in which to call ``resolve_user`` under WSGI. None for the current context.

        An adapter can override this method, if the framework's variables may also be set in the
        current context.
        """
        return request.context

    @property
    def paths(self) -> Iterable[str]:
        """The paths that the middleware answers."""
        return self._routes

    @property
    def named_paths(self) -> dict[str, str | None]:
        """The paths by the names of their options. ``models_path`` is the path of the list of
        models."""
        return self._gate.named_paths

    def answers_unrouted(self, path: str) -> bool:
        """True if we answer this path when the app has no route for it. This is a path below the
        base URL of an OpenAI client: one model, or an unsupported path of OpenAI's API."""
        return self._gate.below(path) is not None

    @property
    def openai_base(self) -> str | None:
        """The path of an OpenAI client's base URL. None if ``inference_path`` does not end with
        ``/chat/completions``."""
        return self._gate.base

    # The class of the client that this kind of middleware uses.
    _client_kind: Any
    let_through: LetThrough = ()
    """The exceptions of the app's functions that the framework converts to responses itself."""

    current_request_class: type[CurrentRequest] = CurrentRequest
    """The class that :meth:`current_request` returns. An adapter can set a subclass."""

    find_app_cors: FindAppCors | None = None
    """A function that returns what the app's own CORS middleware allows. None if the framework has
    no CORS middleware."""

    def _show_interface(self) -> None:
        """A hook for subclasses. Override it if ``__call__`` does not show whether the middleware
        is ASGI or WSGI."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError  # pragma: no cover

    def __repr__(self) -> str:
        # A traceback may show an object whose `__init__` failed.
        return f"{type(self).__name__}({getattr(self, 'app', None)!r})"


def _own_value(app: Any, name: str) -> Any:
    """The value of an attribute that is the app's own, and not its class's. Otherwise
    ``_MISSING``."""
    if inspect.isdatadescriptor(inspect.getattr_static(app.__class__, name, None)):
        return getattr(app, name, _MISSING)
    return getattr(app, "__dict__", {}).get(name, _MISSING)
