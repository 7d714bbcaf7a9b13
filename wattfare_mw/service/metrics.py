"""Counters and gauges for Prometheus. To add a metric, add it here and to
``docs/deployment.md``.

``GET /metrics`` is off by default (``--metrics``), because every client that can reach the service
can read it. For the same reason, labels do not contain an app, a user or a model. Each process
counts from its own start.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)

from .. import money

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one service.

    Attributes:
        overrun_calls: calls whose reported cost was above their reservation.
        overrun_usd: the part of the reported costs that was above the reservations, in USD. It is
            not billed. The reported cost of a call is in the ledger as ``claimed_nanos``, and the
            log has a warning.
        spent_streams: streams that were cut off because their reservation was spent.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.overrun_calls = self._counter(
            "overrun_calls",
            "Calls whose cost, as reported by the upstream, was above their reservation.",
        )
        self.overrun_usd = self._counter(
            "overrun_usd",
            "The part of the reported costs that was above the reservations, in USD. It is not"
            " billed.",
        )
        self.spent_streams = self._counter(
            "spent_streams", "Streams that were cut off because their reservation was spent."
        )

    def overrun(self, nanos: int) -> None:
        """Count a call whose reported cost was above its reservation by this amount."""
        self.overrun_calls.inc()
        self.overrun_usd.inc(float(money.usd(nanos)))

    def watch_waiting(self, count: Callable[[], float]) -> None:
        """Add a gauge for the calls that wait until other calls release budget."""
        Gauge(
            "wattfare_waiting_calls",
            "Calls that wait until other calls of the same user or grant end.",
            registry=self._registry,
        ).set_function(count)

    def exposition(self) -> bytes:
        """All metrics, in the text format of Prometheus."""
        return generate_latest(self._registry)

    def _counter(self, name: str, description: str) -> Counter:
        return Counter(f"wattfare_upstream_{name}", description, registry=self._registry)
