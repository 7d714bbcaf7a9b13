"""``python -m benchmarks``: runs the rows, prints their results and writes RESULTS.md."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from .harness import report, tools
from .harness.bench import Bench
from .harness.load import BARE, completions, wrk
from .harness.machine import busy
from .harness.processes import BenchError, allow_many_files, upstream
from .rows import ROWS


def main() -> int:
    options = _options()
    allow_many_files()
    names = options.only or list(ROWS)
    if options.quick:
        # Times are not judged, so two rows may run at once.
        with ThreadPoolExecutor(2) as pool:
            failed = sum(not works for works in pool.map(_works, names))
        return 1 if failed or not _wrk_works() else 0
    tools.install_missing()
    missed = failed = 0
    for name in names:
        bench = _measure(name, options)
        failed += bench is None
        missed += bench is not None and sum(f.reached is False for f in bench.findings)
    print(f"{missed} goals not reached, {failed} rows failed")
    report.write(list(ROWS))
    return 1 if failed else 0


def _works(name: str) -> bool:
    if not ROWS[name].quick:
        return True
    began = time.monotonic()
    try:
        ROWS[name].run(Bench(quick=True))
    except BenchError as error:
        print(f"{name}: FAILED: {error}", flush=True)
        return False
    print(f"{name}: works ({time.monotonic() - began:.1f} s)", flush=True)
    return True


def _wrk_works() -> bool:
    """Load the fake upstream for a second, because a quick row only sends one request."""
    tools.install_missing("wrk")
    if not tools.has("wrk"):
        print("wrk: not installed", flush=True)
        return True
    try:
        with upstream() as server:
            wrk(server, completions(BARE, users=2), 1)
    except BenchError as error:
        print(f"wrk: FAILED: {error}", flush=True)
        return False
    print("wrk: works", flush=True)
    return True


def _measure(name: str, options: argparse.Namespace) -> Bench | None:
    row = ROWS[name]
    print(f"{name} …", flush=True)
    if row.needs_wrk and not tools.has("wrk"):
        print("  FAILED: wrk is not installed. On Debian, type: apt-get install wrk")
        return None
    bench = Bench(
        rounds=options.rounds,
        seconds=options.seconds,
        keep_counts=options.keep_counts,
        busy=busy(),
    )
    try:
        row.run(bench)
    except BenchError as error:
        print(f"  FAILED: {error}")
        return None
    for finding in bench.findings:
        print(report.line(finding), flush=True)
    report.save(name, bench)
    return bench


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="check that the rows work; judge no times and store nothing",
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(ROWS), metavar="ROW", help="run only these"
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--seconds", type=float, default=2, help="how long each load lasts, in seconds"
    )
    parser.add_argument(
        "--keep-counts", action="store_true", help="store the new instruction counts in counts.json"
    )
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    options = parser.parse_args()
    if options.list:
        for name, row in ROWS.items():
            print(f"{name:20} {row.about}")
        sys.exit()
    return options


if __name__ == "__main__":
    sys.exit(main())
