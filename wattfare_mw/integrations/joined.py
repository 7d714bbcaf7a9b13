"""Errors that are a :class:`~wattfare_mw.errors.WattfareError` and an AI library's own error.

``except WattfareBudgetExceededError`` finds one of them, and so does ``except
openai.APIStatusError``: an app needs no conversion, and a library's retries and fallbacks work.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from ..errors import WattfareError, WattfareNetworkError, restore

#: What a pickled one keeps. A library's part holds a response, which has no such form.
_KEPT = frozenset(vars(WattfareNetworkError()))


class _Joined:
    ours: ClassVar[type[WattfareError]]

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {name: value for name, value in self.__dict__.items() if name in _KEPT}
        return (restore, (self.ours, kept["message"]), kept)


def join(ours: WattfareError, library: Exception) -> Exception:
    """One error that is both. It has the attributes of both, and our own if both have one of that
    name. Its text is ours."""
    joined = _both(type(ours), type(library))
    error = joined.__new__(joined, *ours.args)
    error.__dict__.update(library.__dict__)
    error.__dict__.update(ours.__dict__)
    return error


@cache
def _both(ours: type[WattfareError], library: type[Exception]) -> type[Exception]:
    joined = type(ours.__name__, (_Joined, ours, library), {"ours": ours, "__doc__": ours.__doc__})
    # A library may give its subclasses names of its own.
    joined.__name__, joined.__qualname__ = ours.__name__, ours.__qualname__
    joined.__module__ = ours.__module__
    return joined
