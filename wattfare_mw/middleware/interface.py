"""Which interface an app has: ASGI or WSGI."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Literal

from .base import Middleware


def interface_of(app: Any) -> Literal["asgi", "wsgi"]:
    """Which interface an app has.

    Raises:
        TypeError: it cannot be told.
    """
    if isinstance(app, Middleware):
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
