"""A real Wattfare service for an app's own tests: the fixture ``wattfare`` of pytest, and
:class:`WattfareService` for any other test. It needs the extra ``wattfare-mw[testing]``.

pytest loads this package in every run, so each part is imported on first use.
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
            f"The service of the tests needs {error.name}, which is not installed: "
            "pip install 'wattfare-mw[testing]'.",
            name=error.name,
        ) from None
    value = getattr(module, name)
    globals()[name] = value  # found directly the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
