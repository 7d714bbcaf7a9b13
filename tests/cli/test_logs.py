"""The service's log lines are logging's own."""

from __future__ import annotations

import logging
import sys

from hypothesis import given
from hypothesis import strategies as st

from wattfare_mw.cli.logs import Formatter

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
OURS, ITS = Formatter(FORMAT), logging.Formatter(FORMAT)


def record(created: float, *, error: bool = False, text: str = "%s of %d") -> logging.LogRecord:
    try:
        raise ValueError("this one")
    except ValueError:
        about = sys.exc_info() if error else None
    made = logging.LogRecord("wattfare_mw", logging.INFO, "file", 1, text, ("one", 2), about)
    made.created, made.msecs = created, created % 1 * 1000
    return made


@given(st.lists(st.floats(0, 4e9), min_size=1, max_size=5), st.booleans())
def test_a_line_is_what_logging_makes_of_it(moments: list[float], error: bool) -> None:
    for moment in (*moments, moments[-1] + 0.25):
        # Each is given its own record: one whose exception was formatted keeps the text.
        assert OURS.format(record(moment, error=error)) == ITS.format(record(moment, error=error))
