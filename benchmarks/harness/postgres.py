"""A PostgreSQL cluster for the benchmarks: that of the tests, but with durable commits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .processes import ROOT, BenchError


@contextmanager
def cluster() -> Iterator[Any]:
    """Run a cluster until the end of the block. Its ``database()`` returns the URL of a new
    database.

    Raises:
        BenchError: PostgreSQL is not installed.
    """
    sys.path.append(str(ROOT / "tests"))
    try:
        import support.postgres as tests
    finally:
        sys.path.remove(str(ROOT / "tests"))
    if tests._binaries() is None:
        raise BenchError("PostgreSQL is not installed. On Debian, type: apt-get install postgresql")
    fast = tests.FAST
    # The tests turn off durable commits, but here the disk must be part of the time.
    tests.FAST = ("max_connections=200",)
    try:
        with tests.run_cluster() as running:
            yield running
    finally:
        tests.FAST = fast
