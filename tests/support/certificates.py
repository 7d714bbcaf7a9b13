"""The certificates of this machine, read once: reading them takes longer than most tests."""

from __future__ import annotations

import ssl
from functools import cache


@cache
def ssl_context() -> ssl.SSLContext:
    """A value for the ``verify`` option of an HTTP client."""
    return ssl.create_default_context()
