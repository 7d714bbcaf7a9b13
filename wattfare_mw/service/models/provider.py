"""What the service asks of whoever generates the answers: the built-in model, or an upstream."""

from __future__ import annotations

from typing import Protocol

from ..chat.meter import Meter
from ..chat.request import ChatRequest
from ..records import Bounds
from .credential import Credential


class Job(Protocol):
    """One call, known by its bounds before it starts, metered while it runs.

    A job that fails raises a WattfareError from :meth:`start`, :meth:`body` or
    :meth:`read_events`; its meter says whether anything was generated before that.
    """

    @property
    def bounds(self) -> Bounds:
        """What it can cost."""
        ...

    @property
    def meter(self) -> Meter:
        """What it has cost."""
        ...

    @property
    def detaches(self) -> bool:
        """Does the call go on if its client leaves? It does if the provider would charge for the
        whole answer anyway."""
        ...

    @property
    def generation_id(self) -> str | None:
        """The name under which the provider keeps what this stream costs. None as long as it is not
        known, or if the provider keeps no such records. At most 128 ASCII characters."""
        ...

    @property
    def lowered(self) -> int | None:
        """Once started: the limit, in tokens, where it is lower than what was asked for."""
        ...

    async def tighten(self) -> Bounds | None:
        """Closer bounds, which take longer to find; None if there are none. They are asked for if
        the first ones do not fit what is left."""
        ...

    async def start(self, granted: int, credential: Credential | None = None) -> None:
        """Send it off; returns when the answer's head is good.

        Args:
            granted: what it may cost, in nano-dollars, within its bounds: one that asked for
                more generates less.
            credential: the payer's key that pays; None: the operator's.
        """
        ...

    async def body(self) -> bytes:
        """The whole answer, as JSON."""
        ...

    async def read_events(self) -> bytes:
        """More of the answer's events, whole ones. The meter says ``complete`` when the last one
        is given, by which a client can know it, and not before; there are no more behind it."""
        ...

    async def close(self) -> None:
        """Let go of everything, at once; safe to call at any time."""
        ...


class Provider(Protocol):
    """Where answers come from."""

    @property
    def keeps_records(self) -> bool:
        """Can the provider be asked what a stream cost that was not read to its end?"""
        ...

    async def models(self) -> bytes:
        """The list of models, as OpenRouter shapes it (JSON)."""
        ...

    async def prepare(self, request: ChatRequest, request_id: str) -> Job:
        """The job that this request is. Nothing is sent yet.

        Raises:
            WattfareError: ``invalid_request``; there is no such model, or none at a known price.
        """
        ...

    async def true_cost(
        self, generation_id: str, credential: Credential | None = None
    ) -> int | None:
        """What a generation cost, in nano-dollars; None if the record is not there yet.

        Args:
            credential: the payer's key that paid; None: the operator's.

        Raises:
            WattfareError: the provider did not answer, or refused. It may answer later.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
