"""New ids for requests and calls."""

from __future__ import annotations

import random
import time


def new_id() -> str:
    """A unique id that sorts after all earlier ones, so that new rows lie side by side in an
    index. It is not a secret: asking the system for random bytes takes much longer."""
    return f"{time.time_ns():016x}{random.getrandbits(64):016x}"
