"""What the ASGI and the WSGI middleware share: the options, the client and the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from ..client import AsyncWattfare, Wattfare, client_for
from ..error_responses import LetThrough
from ..transport import hidden
from ..users import ResolveUser
from .gate import Gate
from .options import HEARTBEAT_SECONDS, INFERENCE_PATH, STATUS_PATH, TOKEN_PATH


class Middleware:
    """The base of both kinds of middleware. See :class:`wattfare_mw.WattfareMiddleware`."""

    # What each request needs has a slot of its own: a class with a `__getattr__` is slow to give
    # what is in the `__dict__`.
    __slots__ = ("__dict__", "__weakref__", "_app_and_paths")

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
        request_limit: Any = None,
        account_label: Any = None,
        models: Iterable[str] | None = None,
        allow_grants: bool = False,
        allowed_origins: Iterable[str] = (),
        max_body_bytes: int = 20 * 2**20,
        max_calls_per_user: int | None = None,
        on_usage: Callable[..., Any] | None = None,
        heartbeat: float | None = HEARTBEAT_SECONDS,
    ) -> None:
        secret_key = hidden(secret_key)
        self.app = app
        own, self._owns_client = client_for(self._client_kind, client, secret_key, base_url)
        # Also what `user()` gives is used inside a request to the app.
        self._client = own._in_request()
        self._gate = Gate(
            self._client._caller,
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
        )
        self._routes = self._gate.routes
        self._use_paths(self._routes, self._gate.base)
        self._show_interface()

    # An app that is wrapped can still be set up: `app.dependency_overrides = …`. Names that begin
    # with an underscore are never the app's: copies, pickles and servers look for those.

    def __getattr__(self, name: str) -> Any:
        app = None if name.startswith("_") else self.__dict__.get("app")
        if app is None:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            )
        return getattr(app, name)

    def _use_paths(self, paths: dict[str, Any], base: str | None) -> None:
        """Look for these paths in each request, and for what stands below this one."""
        # In one, so that a request looks it up once. No path begins with NUL.
        self._app_and_paths = self.app, paths, "\0" if base is None else f"{base}/"

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "app" and "_routes" in self.__dict__:
            self._app_and_paths = value, *self._app_and_paths[1:]
        if self._is_the_app_s(name):
            setattr(self.app, name, value)
        else:
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_the_app_s(name):
            delattr(self.app, name)
            # If it is set again, as unittest's `patch.object` does, it is still the app's.
            self.__dict__.setdefault("_deleted", set()).add(name)
        else:
            object.__delattr__(self, name)

    def _is_the_app_s(self, name: str) -> bool:
        own = self.__dict__
        return not (
            name.startswith("_") or name in own or "app" not in own or hasattr(type(self), name)
        ) and (hasattr(self.app, name) or name in own.get("_deleted", ()))

    @property
    def paths(self) -> Iterable[str]:
        """The paths that are ours."""
        return self._routes

    def answers_unrouted(self, path: str) -> bool:
        """Do we answer this path if the app has no route for it? It is one below the base of an
        OpenAI client: a model, or what is not served."""
        return self._gate.below(path) is not None

    @property
    def openai_base(self) -> str | None:
        """What stands before the paths of an OpenAI client; None if this is no client's base."""
        return self._gate.base

    # Each kind of middleware drives the client of its kind.
    _client_kind: Any
    let_through: LetThrough = ()
    """The exceptions of the app's functions that go on to the framework, which answers them."""

    def _show_interface(self) -> None:
        """For a kind whose ``__call__`` does not show by itself which interface it has."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError  # pragma: no cover

    def __repr__(self) -> str:
        # A traceback's local variables may show one that could not be made.
        return f"{type(self).__name__}({getattr(self, 'app', None)!r})"
