"""Selects the headers that pass between the browser and the service, and the request id. The
allow-lists are in :mod:`wattfare_mw.headers`."""

from __future__ import annotations

import random
from collections.abc import Mapping

from ..headers import PASSED_DOWN, PASSED_UP
from ..types import SANE_REQUEST_ID
from ..web import Request


def request_id(request: Request) -> str:
    """The id in the request if it is valid, or else a new id."""
    given = request.headers.common.get("x-request-id")
    if given is not None and SANE_REQUEST_ID.fullmatch(given):
        return given
    # The id is not a secret, and random bytes from the system would take longer. Each forked
    # process has its own seed.
    return f"{random.getrandbits(128):032x}"


def headers_up(headers: Mapping[str, str], request_id: str) -> dict[str, str]:
    """The headers to send to the service with an inference call. Values that some HTTP clients
    would refuse are left out."""
    up = {"content-type": "application/json"}
    for name in PASSED_UP:
        if name in headers and is_plain(value := headers[name].strip()):
            up[name] = value
    up["x-request-id"] = request_id
    return up


def headers_down(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of the service's answer to send to the browser."""
    down = {"cache-control": "no-store", "x-accel-buffering": "no"}
    for name in PASSED_DOWN:
        if name in headers and is_plain(value := headers[name]):
            down[name] = value
    return down


def is_plain(value: str) -> bool:
    """True if a header's value has only visible ASCII and spaces, and is not empty."""
    return value.isascii() and value.isprintable() and value != ""
