"""What is said between the service and its ledger: orders, outcomes, leases. Plain values."""

from __future__ import annotations

import msgspec

from .ledger.rules import Bounds, Key


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A call that asks for its reservation. Who pays is a user or a grant, never both."""

    id: str
    app_id: str
    user_id: str | None = None
    grant_hash: str | None = None
    model: str
    bounds: Bounds
    request_id: str
    stream: bool = False
    key: Key | None = None

    @property
    def payer(self) -> str:
        """Who pays, in one word."""
        return f"grant:{self.grant_hash}" if self.user_id is None else f"user:{self.user_id}"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended. ``generated``: did the model do anything at all?"""

    ended: str
    generated: bool = False
    cost: int = 0
    claimed: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Metered(msgspec.Struct, frozen=True):
    """What a stream has cost so far: what is billed if nobody is left to say more."""

    reservation_id: str
    cost: int
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Renewal(msgspec.Struct, frozen=True):
    """What became of the process's lease. Where it is not ``held`` any more, its calls are no
    longer its own. ``revoked``: the reservations whose user has taken the connection back."""

    held: bool
    revoked: frozenset[str] = frozenset()
