"""New ids for requests and calls."""

from __future__ import annotations

import random
import time


def new_id() -> str:
    """A unique id that sorts after all earlier ones, so that new rows are next to each other in an
    index. It is not a secret, because random bytes from the system take much longer."""
    return (time.time_ns() << 64 | random.getrandbits(64)).to_bytes(16, "big").hex()
