"""What passes between the browser and the service: headers up, headers down, and a request id.
The lists of headers are in :mod:`wattfare_mw.headers`."""

from __future__ import annotations

import random
from collections.abc import Mapping

from ..headers import PASSED_DOWN, PASSED_UP
from ..types import SANE_REQUEST_ID
from ..web import Request


def request_id(request: Request) -> str:
    """The request's own id, where it brings a sane one, or a new one."""
    given = request.headers.common.get("x-request-id")
    if given is not None and SANE_REQUEST_ID.fullmatch(given):
        return given
    # It is no secret, and asking the system for randomness takes longer. Each forked process
    # begins with a seed of its own.
    return f"{random.getrandbits(128):032x}"


def headers_up(headers: Mapping[str, str], request_id: str) -> dict[str, str]:
    """The headers of an inference call, as they go to the service. A value that not every HTTP
    client would send is left out."""
    up = {"content-type": "application/json"}
    for name in PASSED_UP:
        if name in headers and is_plain(value := headers[name].strip()):
            up[name] = value
    up["x-request-id"] = request_id
    return up


def headers_down(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of the service's answer, as they go to the browser."""
    down = {"cache-control": "no-store", "x-accel-buffering": "no"}
    for name in PASSED_DOWN:
        if name in headers and is_plain(value := headers[name]):
            down[name] = value
    return down


def is_plain(value: str) -> bool:
    """Is a header's value visible ASCII and spaces, and any at all?"""
    return value.isascii() and value.isprintable() and value != ""
