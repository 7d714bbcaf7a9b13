"""What the operator should know of upstreams: counters, in Prometheus's text format.

A call is never billed more than was reserved for it. What an upstream claims beyond that is the
operator's to settle with it: it stands in the ledger as ``claimed_nanos``, in the log as a
warning, and here. ``GET /metrics`` is served with ``--metrics`` only, because it is open to
whoever can reach the service: it says nothing of apps, users or models. Each process counts its
own, from when it started.
"""

from __future__ import annotations

from ..money import usd

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counters:
    """How often upstreams have not kept to what was reserved.

    Attributes:
        overruns: calls for which more was claimed than was reserved.
        overrun_nanos: what was claimed beyond, over all of them, in nano-dollars.
        spent: streams that were cut off because their reservation was spent.
    """

    def __init__(self) -> None:
        self.overruns = 0
        self.overrun_nanos = 0
        self.spent = 0

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        lines: list[str] = []
        for name, meaning, value in (
            (
                "overrun_calls",
                "Calls for which the upstream claims more than was reserved.",
                self.overruns,
            ),
            (
                "overrun_usd",
                "What it claims beyond the reservations, which nobody was billed.",
                usd(self.overrun_nanos),
            ),
            (
                "spent_streams",
                "Streams that were cut off because their reservation was spent.",
                self.spent,
            ),
        ):
            name = f"wattfare_upstream_{name}_total"
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} counter", f"{name} {value}"]
        return ("\n".join(lines) + "\n").encode()
