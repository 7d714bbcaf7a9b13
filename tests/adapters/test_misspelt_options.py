"""A misspelt option raises the same clear error in each adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from litestar import Litestar
from starlette.applications import Starlette
from wattfare_fastapi import add_wattfare as add_to_fastapi
from wattfare_flask import WattfareMiddleware as FlaskWattfare
from wattfare_litestar import WattfareMiddleware as LitestarWattfare
from wattfare_litestar import WattfarePlugin
from wattfare_starlette import WattfareMiddleware as StarletteWattfare
from wattfare_starlette import add_wattfare as add_to_starlette

from wattfare_mw import WattfareMiddleware
from wattfare_mw.framework import (
    WattfareASGIMiddleware,
    WattfareAsyncAdapter,
    WattfareWSGIMiddleware,
)


def user(_request: Any) -> str:
    return "u1"


Make = Callable[..., Any]
MAKERS: dict[str, Make] = {
    "asgi": lambda **options: WattfareMiddleware(Starlette(), **options),
    "wsgi": lambda **options: WattfareMiddleware(Flask(__name__), **options),
    "fastapi": lambda **options: add_to_fastapi(FastAPI(), **options),
    "starlette": lambda **options: add_to_starlette(Starlette(), **options),
    "starlette middleware": lambda **options: StarletteWattfare(Starlette(), **options),
    "litestar": lambda **options: WattfarePlugin(**options),
    "litestar middleware": lambda **options: LitestarWattfare(Litestar([]), **options),
    "flask": lambda **options: FlaskWattfare(Flask(__name__), **options),
    "flask factory": lambda **options: FlaskWattfare(**options),
    "framework asgi": lambda **options: WattfareASGIMiddleware(Starlette(), **options),
    "framework wsgi": lambda **options: WattfareWSGIMiddleware(Flask(__name__), **options),
    "framework async": lambda **options: WattfareAsyncAdapter(**options),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"resolve_usr": user},
            "WattfareMiddleware has no option 'resolve_usr'. Did you mean resolve_user?",
        ),
        ({"resolve_user": user, "request_limits": 5}, "Did you mean request_limit?"),
        (
            {"resolve_user": user, "zzz": 5},
            "has no option 'zzz'. The options are account_label, allow_",
        ),
    ],
)
def test_misspelt_option_names_the_nearest(make: Make, options: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError) as caught:
        make(**options, secret_key="sk_test_1_2", base_url="http://127.0.0.1:9")
    assert says in str(caught.value)
    assert "sk_test" not in str(caught.value)
