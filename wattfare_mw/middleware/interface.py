"""Detects the interface of an app: ASGI or WSGI."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Literal, cast

import asgiref.compatibility

from .base import Middleware

Interface = Literal["asgi", "wsgi"]

#: Libraries that only support WSGI. Their callables may accept any arguments.
_WSGI_LIBRARIES = frozenset({"paste", "webob", "werkzeug", "wsgiref"})
#: The attributes that may have the wrapped app, if a callable accepts any arguments.
_INNER_APPS = ("__wrapped__", "app", "application", "wsgi_app", "asgi_app", "server")
#: The maximum number of nested wrappers.
_MAX_DEPTH = 16


def interface_of(app: Any) -> Interface:
    """Detect the interface of an app.

    Raises:
        TypeError: it cannot be detected.
    """
    kind = _interface_of(app, _MAX_DEPTH)
    if kind is not None:
        return kind
    if inspect.isclass(_unwrapped(app)) or not callable(app):
        raise TypeError(f"{app!r} is a {type(app).__name__}, not an app: pass the app itself")
    raise TypeError(
        f"cannot detect whether {app!r} is an ASGI or a WSGI app: pass interface='asgi' or"
        " interface='wsgi'"
    )


def single_callable(app: Any) -> Any:
    """Return an ASGI 3 app. An ASGI 2 app, which is called twice, is converted."""
    compatibility: Any = asgiref.compatibility  # the module has no types
    return compatibility.double_to_single_callable(app) if _is_asgi_2(app) else app


def _interface_of(app: Any, depth: int) -> Interface | None:
    if isinstance(app, Middleware):
        return "asgi" if inspect.iscoroutinefunction(app.__call__) else "wsgi"
    function = _unwrapped(app)
    if not callable(function):
        return None
    if inspect.isclass(function):
        return _interface_of_class(app, function)
    method = getattr(function, "__call__", None)  # noqa: B004
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method):
        return "asgi"
    takes_two, takes_three = _takes(app, 2), _takes(app, 3)
    if takes_two != takes_three:
        return "wsgi" if takes_two else "asgi"
    if _is_asgi_2(app) and [*inspect.signature(app).parameters] == ["scope"]:
        return "asgi"
    # The callable accepts any arguments, or Python cannot inspect them.
    if takes_two or not _has_signature(app):
        return _of_library(function) or _of_inner_app(function, depth)
    return None


def _unwrapped(app: Any) -> Any:
    while isinstance(app, functools.partial):
        app = cast("functools.partial[Any]", app).func
    return app


def _interface_of_class(app: Any, cls: type[Any]) -> Interface | None:
    """The interface of an app that is a class. A server creates an object for each request."""
    if hasattr(cls, "__await__") and _takes(app, 3):
        return "asgi"
    if hasattr(cls, "__iter__") and _takes(app, 2):
        return "wsgi"
    return "asgi" if _is_asgi_2(app) else None


def _is_asgi_2(app: Any) -> bool:
    """True for an ASGI 2 app. It is called with the scope, and its result is called with
    ``receive`` and ``send``."""
    function = _unwrapped(app)
    if isinstance(function, Middleware) or not callable(function):
        return False
    if not _takes(app, 1) or _takes(app, 2) or _takes(app, 3):
        return False
    if not inspect.isclass(function):
        method = getattr(function, "__call__", None)  # noqa: B004
        return not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method))
    method = function.__call__
    return inspect.iscoroutinefunction(method) and _takes(method, 3) and not _takes(method, 4)


def _of_library(function: Any) -> Interface | None:
    places = (function, *type(function).__mro__)
    modules = [getattr(place, "__module__", None) or "" for place in places]
    libraries = {module.partition(".")[0] for module in modules}
    return "wsgi" if libraries & _WSGI_LIBRARIES else None


def _of_inner_app(function: Any, depth: int) -> Interface | None:
    for name in _INNER_APPS if depth else ():
        inner = getattr(function, name, None)
        if inner is not None and inner is not function:
            kind = _interface_of(inner, depth - 1)
            if kind is not None:
                return kind
    return None


def _has_signature(app: Any) -> bool:
    try:
        inspect.signature(app)
    except (TypeError, ValueError):
        return False
    return True


def _takes(app: Any, count: int) -> bool:
    try:
        inspect.signature(app).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True
