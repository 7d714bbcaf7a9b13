"""Reads the project's own CORS settings, those of django-cors-headers."""

# Django has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast
from urllib.parse import urlsplit

from wattfare_mw.framework import AppCors, FindAppCors, Request

from .conf import OUR_MIDDLEWARE, place_of

_CORS = "corsheaders.middleware.CorsMiddleware"


def find_cors() -> FindAppCors | None:
    """A function that returns what the project's CorsMiddleware allows for a request. None if the
    project has no CorsMiddleware."""
    cors, ours = place_of(_CORS), place_of(OUR_MIDDLEWARE)
    if cors is None:
        return None
    return _FindCors(answers=ours is None or cors < ours)


class _FindCors:
    """Finds what CorsMiddleware allows for a path. It reads the settings once."""

    def __init__(self, *, answers: bool) -> None:
        from corsheaders.conf import conf
        from corsheaders.middleware import CorsMiddleware

        self._answers = answers
        self._conf: Any = conf
        self._middleware: Any = cast("Any", CorsMiddleware)(None)

    def __call__(self, request: Request) -> AppCors | None:
        if self._middleware.check_signal(request.raw):
            return self._of_signal
        if re.match(self._conf.CORS_URLS_REGEX, request.raw.path_info):
            return self._of_settings
        return None

    @cached_property
    def _of_settings(self) -> AppCors:
        return self._cors(self._is_listed)

    @cached_property
    def _of_signal(self) -> AppCors:
        # A handler of the signal may allow a request of any origin.
        return self._cors(lambda _origin: True)

    def _cors(self, is_allowed: Callable[[str], bool]) -> AppCors:
        credentials = self._conf.CORS_ALLOW_CREDENTIALS
        return AppCors(is_allowed, credentials=credentials, answers=self._answers)

    def _is_listed(self, origin: str) -> bool:
        try:
            url = urlsplit(origin)
        except ValueError:
            return False
        return self._conf.CORS_ALLOW_ALL_ORIGINS or self._middleware.origin_found_in_white_lists(
            origin, url
        )
