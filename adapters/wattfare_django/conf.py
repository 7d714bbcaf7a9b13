"""Reads the settings ``WATTFARE`` and ``MIDDLEWARE``."""

# Django has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from wattfare_mw.framework import Options, hide_secret_key, unknown_option

#: The middleware's options, by their names in the setting.
OPTIONS = {name.upper(): name for name in Options.__annotations__}
#: Our middleware, by the module that defines it.
OUR_MIDDLEWARE = "wattfare_django.middleware.WattfareMiddleware"
#: The options that may be the dotted path of an object.
_IMPORTED = {"ACCOUNT_LABEL", "CLIENT", "ON_USAGE", "REQUEST_LIMIT", "RESOLVE_USER"}


def read_setting() -> dict[str, Any]:
    """Read the options in ``WATTFARE``.

    Raises:
        ImproperlyConfigured: the setting is not a dict, has an unknown option, or has a path that
            cannot be imported.
    """
    given: Any = getattr(settings, "WATTFARE", {})
    if not isinstance(given, dict):
        raise ImproperlyConfigured(
            f'WATTFARE must be a dict of options, such as {{"REQUEST_LIMIT": 20}}, not a'
            f" {type(given).__name__}."
        )
    given = cast("dict[Any, Any]", given)
    _hide_key(given)
    for name in given:
        if name not in OPTIONS:
            raise ImproperlyConfigured(unknown_option("WATTFARE", name, OPTIONS))
    return {OPTIONS[name]: _value(name, given[name]) for name in given}


def place_of(middleware: str) -> int | None:
    """The index in ``MIDDLEWARE`` of this class or of a subclass of it.

    Args:
        middleware: the module and the name of the class.
    """
    for place, name in enumerate(settings.MIDDLEWARE):
        if name == middleware or middleware in _names_of_bases(name):
            return place
    return None


def _names_of_bases(name: str) -> set[str]:
    try:
        middleware = import_string(name)
    except Exception:  # Django reports it when it loads the middleware
        return set()
    return {f"{base.__module__}.{base.__qualname__}" for base in getattr(middleware, "__mro__", ())}


def _hide_key(given: dict[Any, Any]) -> None:
    """Hide the secret key in the setting itself, because tracebacks may show the setting."""
    key = {"secret_key": given.get("SECRET_KEY")}
    hide_secret_key(key)
    if key["secret_key"] is not None:
        given["SECRET_KEY"] = key["secret_key"]


def _value(name: str, value: Any) -> Any:
    if name in _IMPORTED and isinstance(value, str) and _is_dotted_path(value):
        try:
            return import_string(value)
        except ImportError as error:
            raise ImproperlyConfigured(f'WATTFARE["{name}"]: {error}') from error
    return value


def _is_dotted_path(text: str) -> bool:
    parts = text.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)
