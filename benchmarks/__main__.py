"""``python -m benchmarks``: run the rows, print what they give, write RESULTS.md."""

from __future__ import annotations

import argparse
import sys
import time

from .harness import report, tools
from .harness.bench import Bench
from .harness.machine import busy
from .harness.processes import BenchError, allow_many_files
from .rows import ROWS


def main() -> int:
    options = _options()
    allow_many_files()
    if not options.quick:
        tools.install_missing()
    failed = missed = 0
    for name in options.only or list(ROWS):
        row = ROWS[name]
        if options.quick and not row.quick:
            continue
        if not options.quick and row.needs_wrk and not tools.has("wrk"):
            print(f"{name}: skipped: wrk is not there (apt-get install wrk)")
            failed += 1
            continue
        bench = Bench(options.quick, options.rounds, options.seconds, options.keep_counts)
        began = time.monotonic()
        if not options.quick:
            bench.busy = busy()
        print(f"{name} …", flush=True)
        try:
            row.run(bench)
        except BenchError as error:
            print(f"  FAILED: {error}")
            failed += 1
            continue
        if options.quick:
            print(f"  works ({time.monotonic() - began:.1f} s)")
            continue
        for finding in bench.findings:
            print(report.line(finding), flush=True)
            missed += finding.reached is False
        report.save(name, bench)
        report.write(list(ROWS))
    if not options.quick:
        print(f"{missed} not reached, {failed} failed; see benchmarks/RESULTS.md")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "--quick", action="store_true", help="see that every row works; judge no time, keep nothing"
    )
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="ROW", help="these rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of load, each time")
    parser.add_argument(
        "--keep-counts", action="store_true", help="the instruction counts of now are those to keep"
    )
    parser.add_argument("--list", action="store_true", help="name the rows, and do no more")
    options = parser.parse_args()
    if options.list:
        for name, row in ROWS.items():
            print(f"{name:20} {row.about}")
        sys.exit()
    return options


if __name__ == "__main__":
    sys.exit(main())
