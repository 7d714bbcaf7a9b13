"""A real Wattfare service for the tests of an app. With pytest, use the fixture ``wattfare``. With
another test runner, use :class:`WattfareService`. Both need the extra ``wattfare-mw[testing]``.

pytest loads this package in each run, so it imports each part on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recording import RecordedCall
    from .servers import Clock
    from .service import SharedService, WattfareService, shared_service
    from .users import AppUser

_HOMES = {
    "AppUser": "users",
    "Clock": "servers",
    "RecordedCall": "recording",
    "SharedService": "service",
    "WattfareService": "service",
    "shared_service": "service",
}

__all__ = [
    "AppUser",
    "Clock",
    "RecordedCall",
    "SharedService",
    "WattfareService",
    "shared_service",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{home}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "wattfare_mw":
            raise
        raise ModuleNotFoundError(
            f"{error.name} is not installed. The service for tests needs it. Type: pip install"
            " 'wattfare-mw[testing]'",
            name=error.name,
        ) from None
    value = getattr(module, name)
    globals()[name] = value  # the next access finds it directly
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
