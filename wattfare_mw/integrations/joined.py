"""Errors that are both a :class:`~wattfare_mw.WattfareError` and an AI library's own error.

Both ``except WattfareBudgetExceededError`` and ``except openai.APIStatusError`` catch such an
error. So an app does not need to convert errors, and the library's retries and fallbacks work.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from ..errors import WattfareError, WattfareNetworkError, restore

#: The attributes that pickle keeps. The library's attributes include a response, which cannot be
#: pickled.
_KEPT = frozenset(vars(WattfareNetworkError()))


class _Joined:
    ours: ClassVar[type[WattfareError]]

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {name: value for name, value in self.__dict__.items() if name in _KEPT}
        return (restore, (self.ours, kept["message"]), kept)


def join(ours: WattfareError, library: Exception) -> Exception:
    """Combine two errors into one with the attributes of both. If both have an attribute, our value
    is used. The message is ours, too."""
    joined = _both(type(ours), type(library))
    error = joined.__new__(joined, *ours.args)
    error.__dict__.update(library.__dict__)
    error.__dict__.update(ours.__dict__)
    return error


@cache
def _both(ours: type[WattfareError], library: type[Exception]) -> type[Exception]:
    joined = type(ours.__name__, (_Joined, ours, library), {"ours": ours, "__doc__": ours.__doc__})
    # A library may change the names of its subclasses.
    joined.__name__, joined.__qualname__ = ours.__name__, ours.__qualname__
    joined.__module__ = ours.__module__
    return joined
