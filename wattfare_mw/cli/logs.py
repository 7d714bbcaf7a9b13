"""The service's log lines, of which there is one for each request."""

from __future__ import annotations

import logging
import sys
import time


def to_stderr(level: str) -> None:
    """Log to stderr from this level on, ``debug`` to ``error``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # Nothing of this is in a line: see "Optimization" in Python's own guide to logging.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # pyright: ignore[reportAttributeAccessIssue]
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its plugins


class Formatter(logging.Formatter):
    """logging's own, which works the date out anew and looks its own format up for each line."""

    _second = -1
    _date = ""

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._date = time.strftime(self.default_time_format, self.converter(second))
        return (
            f"{self._date},{int(record.msecs):03d} {record.levelname} {record.name} "
            f"{record.getMessage()}"
        )
