"""The interface of a provider, which is the built-in model or an upstream."""

from __future__ import annotations

from typing import Protocol

from ..chat.meter import Meter
from ..chat.request import ChatRequest
from ..records import Bounds
from .credential import Credential


class Job(Protocol):
    """One call. It has bounds before it starts, and a meter while it runs.

    If the call fails, :meth:`start`, :meth:`body` or :meth:`read_events` raises a WattfareError.
    The meter shows whether the model generated anything before.
    """

    @property
    def bounds(self) -> Bounds:
        """The bounds of the call's cost."""
        ...

    @property
    def meter(self) -> Meter:
        """The meter of the call's cost."""
        ...

    @property
    def detaches(self) -> bool:
        """True if the call continues after its client leaves, because the provider charges for the
        whole answer anyway."""
        ...

    @property
    def generation_id(self) -> str | None:
        """The provider's id of this stream, with which the service can ask for its cost. It has at
        most 128 ASCII characters. None if it is not known yet, or if the provider keeps no
        records."""
        ...

    @property
    def lowered(self) -> int | None:
        """After the start: the token limit, if it is lower than the requested limit. Otherwise
        None."""
        ...

    async def tighten(self) -> Bounds | None:
        """Compute closer bounds, which takes longer. Returns None if there are none. This is used
        if the budget does not cover the first bounds."""
        ...

    async def start(self, granted: int, credential: Credential | None = None) -> None:
        """Send the call. Returns when the upstream has accepted it.

        Args:
            granted: the reserved amount, in nano-dollars. It is within the bounds. If it is less
                than ``most``, the answer may be shortened.
            credential: the payer's key that pays. None for the operator's key.
        """
        ...

    async def body(self) -> bytes:
        """Read the whole answer, as JSON."""
        ...

    async def read_events(self) -> bytes:
        """Read the next complete events. With the last events, the meter's ``complete`` becomes
        True."""
        ...

    async def close(self) -> None:
        """Release all resources at once. This can be called at any time."""
        ...


class Provider(Protocol):
    """The provider of answers."""

    @property
    def keeps_records(self) -> bool:
        """True if the provider can report the cost of a stream that was not read to its end."""
        ...

    async def models(self) -> bytes:
        """The list of models, in OpenRouter's JSON format."""
        ...

    def names_of(self, model: str) -> tuple[str, ...]:
        """The names that the list may have for a model, from the name in a call."""
        ...

    async def prepare(self, request: ChatRequest, request_id: str) -> Job:
        """Prepare the job for this request, without sending anything.

        Raises:
            WattfareError: ``invalid_request``; the model does not exist, or has no known price.
        """
        ...

    async def true_cost(
        self, generation_id: str, credential: Credential | None = None
    ) -> int | None:
        """Ask for the cost of a generation, in nano-dollars. None if its record does not exist yet.

        Args:
            credential: the payer's key that paid. None for the operator's key.

        Raises:
            WattfareError: the provider did not answer, or refused to answer. It may answer later.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
