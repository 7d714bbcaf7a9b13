"""The interface of a provider of answers: the built-in model, or an upstream."""

from __future__ import annotations

from typing import Protocol

from ..chat.meter import Meter
from ..chat.request import ChatRequest
from ..records import Bounds
from .credential import Credential


class Job(Protocol):
    """One call: its bounds before it starts, and its meter while it runs.

    If it fails, :meth:`start`, :meth:`body` or :meth:`read_events` raises a WattfareError. The
    meter tells whether anything was generated before.
    """

    @property
    def bounds(self) -> Bounds:
        """The bounds of its cost."""
        ...

    @property
    def meter(self) -> Meter:
        """The meter of its cost."""
        ...

    @property
    def detaches(self) -> bool:
        """True if the call goes on without its client, because the provider charges for the whole
        answer anyway."""
        ...

    @property
    def generation_id(self) -> str | None:
        """The provider's id of this stream, to ask for its cost. None if it is not known yet, or if
        the provider keeps no records. At most 128 ASCII characters."""
        ...

    @property
    def lowered(self) -> int | None:
        """After the start: the limit, in tokens, if it is lower than the requested one."""
        ...

    async def tighten(self) -> Bounds | None:
        """Closer bounds, which take longer to compute; None if there are none. Used if the first
        bounds do not fit what is left."""
        ...

    async def start(self, granted: int, credential: Credential | None = None) -> None:
        """Send the call. Returns when the upstream has accepted it.

        Args:
            granted: what it may cost, in nano-dollars, within its bounds. Less than ``most``
                shortens the answer.
            credential: the payer's key that pays; None: the operator's.
        """
        ...

    async def body(self) -> bytes:
        """The whole answer, as JSON."""
        ...

    async def read_events(self) -> bytes:
        """More whole events of the answer. The meter's ``complete`` becomes true with the last
        events, and not before; nothing follows them."""
        ...

    async def close(self) -> None:
        """Release everything at once. Safe to call at any time."""
        ...


class Provider(Protocol):
    """The source of answers."""

    @property
    def keeps_records(self) -> bool:
        """True if the provider can tell the cost of a stream that was not read to its end."""
        ...

    async def models(self) -> bytes:
        """The list of models, as OpenRouter shapes it (JSON)."""
        ...

    def names_of(self, model: str) -> tuple[str, ...]:
        """The names under which the list may have the model that a call names so."""
        ...

    async def prepare(self, request: ChatRequest, request_id: str) -> Job:
        """The job for this request. Nothing is sent yet.

        Raises:
            WattfareError: ``invalid_request``; the model does not exist, or has no known price.
        """
        ...

    async def true_cost(
        self, generation_id: str, credential: Credential | None = None
    ) -> int | None:
        """The cost of a generation, in nano-dollars; None if its record does not exist yet.

        Args:
            credential: the payer's key that paid; None: the operator's.

        Raises:
            WattfareError: the provider did not answer, or refused. It may answer later.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
