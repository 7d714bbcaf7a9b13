"""Measures how fast this machine is during a test. A separate process does a little work at
intervals; attacks do not affect it.

A limit in seconds means seconds on an idle machine. If other programs use the CPU, everything takes
longer, and this process measures by how much.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from typing import Self

# 1 ms of work every 40 ms. An input line asks for the results since the last one. A scheduler
# prefers a process that works so little, so the number of those that want to run counts, too.
_PROGRAM = """
import os, select, sys, time
CPUS = os.cpu_count()

def crowd():
    try:
        with open("/proc/loadavg", "rb", buffering=0) as file:  # of Linux
            running = int(file.read().split()[3].partition(b"/")[0])
    except OSError:
        return 0.0
    return (running - 1) / CPUS  # without this process

wall = cpu = late = crowds = 0.0
times = 0
while True:
    began = time.monotonic()
    asked = select.select([sys.stdin], [], [], 0.04)[0]
    late = max(late, time.monotonic() - began - 0.04)
    crowds += crowd()
    times += 1
    began, worked = time.monotonic(), time.process_time()
    while time.process_time() < worked + 0.001:
        pass
    wall += time.monotonic() - began
    cpu += time.process_time() - worked
    if asked:
        if not sys.stdin.readline():
            break
        print(max(wall / cpu, crowds / times), late, flush=True)
        wall = cpu = late = crowds = 0.0
        times = 0
"""


class Pace:
    """Watches the machine in a ``with`` block."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.since()
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self._process.communicate()

    def since(self) -> tuple[float, float]:
        """How many times longer than on an idle machine work has taken since the last call, and the
        longest delay of the process in seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        slowness, late = self._process.stdout.readline().split()
        return max(1.0, float(slowness)), float(late)

    def on_idle(self, seconds: float) -> float:
        """Convert seconds that have passed since the last call to seconds on an idle machine."""
        slowness, late = self.since()
        return max(0.0, seconds - late) / slowness
