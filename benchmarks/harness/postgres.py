"""A PostgreSQL of the benchmarks' own: the tests' cluster, with its commits on the disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .processes import ROOT, BenchError


@contextmanager
def cluster() -> Iterator[Any]:
    """A cluster for as long as the block lasts; ``database()`` gives the URL of a new database.

    Raises:
        BenchError: PostgreSQL is not installed.
    """
    sys.path.append(str(ROOT / "tests"))
    try:
        import support.postgres as tests
    finally:
        sys.path.remove(str(ROOT / "tests"))
    if tests._binaries() is None:
        raise BenchError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    fast = tests.FAST
    # Theirs need not survive a crash of the machine; here it must cost what it costs.
    tests.FAST = ("max_connections=200",)
    try:
        with tests.run_cluster() as running:
            yield running
    finally:
        tests.FAST = fast
