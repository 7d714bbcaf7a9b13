"""The runner: ``python -m fuzz``. Without options, it runs a million inputs.

Each input is generated from the seed, its target and its number, so a failure can be repeated:
``python -m fuzz --seed SEED --target NAME --only NUMBER``.
"""

from __future__ import annotations

import argparse
import logging
import sys

from fuzz import runner


def main() -> int:
    """Runs the targets. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many inputs")
    parser.add_argument("--seconds", type=float, help="stop after this many seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=[*runner.TARGETS, runner.API], help="run only this one")
    parser.add_argument("--only", type=int, help="run only the input of this number")
    options = parser.parse_args()
    logging.disable()  # generated errors fill the log
    if options.only is not None:
        if options.target in (None, runner.API):
            parser.error("--only goes with --target, and not with the target `api`")
        runner.run_one(options.target, options.seed, options.only)
        return 0
    try:
        runner.run(options.inputs, options.seconds, options.seed, options.target)
    except runner.FuzzFailedError as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
