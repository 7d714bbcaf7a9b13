"""One run of a row: its rounds, its samples and its findings.

Each round measures each subject once. The order changes from round to round. The ratio of two
subjects is the median of the rounds' ratios, so a slow phase of the machine affects both subjects.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from .load import Load, Sample, check, wrk
from .processes import BenchError, Server


@dataclass(frozen=True)
class Subject:
    """A server that is measured. ``watched``: other servers whose CPU time is measured, too."""

    name: str
    server: Server
    load: Load
    watched: tuple[Server, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A measured number and its goal. ``reached`` is None if there is no goal."""

    path: str
    measure: str
    against: str
    value: float
    unit: str
    goal: str
    reached: bool | None
    detail: str = ""


Series = dict[str, list[float]]
"""The numbers of each subject, one for each round."""


@dataclass
class Bench:
    """One row's run.

    Attributes:
        quick: True to run one very short round, which only checks that the row works.
        busy: the share of the machine that other processes used before the run, from 0 to 1.
        findings: the numbers to compare with goals.
        tables: the tables of the row.
        raw: the numbers of each round.
    """

    quick: bool = False
    rounds: int = 5
    seconds: float = 4
    keep_counts: bool = False
    busy: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    # -- measuring

    def load(self, title: str, subjects: Iterable[Subject]) -> dict[str, list[Sample]]:
        """Load each subject in turn. Returns the samples by the subjects' names."""
        listed = list(subjects)
        for subject in listed:
            check(subject.server, subject.load)
        if not self.quick:
            for subject in listed:
                with suppress(BenchError):  # a slow server may need more than a second
                    wrk(subject.server, subject.load, 1)
        samples: dict[str, list[Sample]] = {subject.name: [] for subject in listed}
        for subject in self._turns(listed):
            samples[subject.name].append(self._sample(subject))
        self._tabulate(title, samples)
        return samples

    def take(self, title: str, unit: str, subjects: dict[str, Callable[[], float]]) -> Series:
        """Call each function in turn. Returns the numbers by name."""
        numbers: Series = {name: [] for name in subjects}
        for name in self._turns(list(subjects)):
            numbers[name].append(subjects[name]())
        rows = [[name, f"{statistics.median(taken):,.3f}"] for name, taken in numbers.items()]
        self.tables.append({"title": title, "columns": ["", unit], "rows": rows})
        self.raw[title] = numbers
        return numbers

    def _turns(self, subjects: list[Any]) -> Iterable[Any]:
        for turn in range(1 if self.quick else self.rounds):
            start = turn % len(subjects)
            yield from subjects[start:] + subjects[:start]

    def _sample(self, subject: Subject) -> Sample:
        if not self.quick:
            return wrk(subject.server, subject.load, self.seconds, subject.watched)
        times: list[float] = []
        for _ in range(3):
            began = time.perf_counter()
            check(subject.server, subject.load)
            times.append((time.perf_counter() - began) * 1e3)
        return Sample(1e3 / statistics.mean(times), statistics.median(times), max(times))

    def _tabulate(self, title: str, samples: dict[str, list[Sample]]) -> None:
        watched = list(dict.fromkeys(n for s in samples.values() for one in s for n in one.cpu))
        others = [name for name in watched if name not in samples]
        columns = ["", "per second", "median ms", "p99 ms", "CPU", "CPU µs each"]
        rows: list[list[str]] = []
        for name, taken in samples.items():

            def middle(of: Callable[[Sample], float], taken: list[Sample] = taken) -> float:
                return statistics.median(map(of, taken))

            row = [
                name,
                f"{middle(lambda s: s.rate):,.0f}",
                f"{middle(lambda s: s.p50_ms):,.2f}",
                f"{middle(lambda s: s.p99_ms):,.2f}",
            ]
            own = [s.cpu[name] / s.rate * 1e6 for s in taken if name in s.cpu]
            for server in (name, *others):
                shares = [s.cpu[server] for s in taken if server in s.cpu]
                row.append(f"{statistics.median(shares):.0%}" if shares else "")
            row.insert(5, f"{statistics.median(own):,.0f}" if own else "")
            rows.append(row)
        columns += [f"{name}'s CPU" for name in others]
        self.tables.append({"title": title, "columns": columns, "rows": rows})
        self.raw[title] = {name: [asdict(s) for s in taken] for name, taken in samples.items()}

    # -- judging

    def judge(
        self,
        path: str,
        measure: str,
        against: str,
        value: float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        unit: str = "×",  # noqa: RUF001
        detail: str = "",
    ) -> None:
        """Record a number, and whether it reaches its goal."""
        goal, reached = "", None
        if at_least is not None:
            goal, reached = f"≥ {at_least:g} {unit}", value >= at_least
        if at_most is not None:
            goal, reached = f"≤ {at_most:g} {unit}", value <= at_most
        if self.quick:
            reached = None
        self.findings.append(Finding(path, measure, against, value, unit, goal, reached, detail))


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def rates(samples: list[Sample]) -> list[float]:
    return [sample.rate for sample in samples]


def versus(samples: dict[str, list[Sample]], ours: str, theirs: str, unit: str) -> str:
    """Both median rates, as text."""
    a, b = (statistics.median(rates(samples[name])) for name in (ours, theirs))
    return f"{a:,.0f} against {b:,.0f} {unit}"
