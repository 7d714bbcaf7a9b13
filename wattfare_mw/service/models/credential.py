"""A key for the upstream, with the redaction that removes it from answers."""

from __future__ import annotations

from typing import Protocol

from ...transport import Secret, hidden
from .redaction import Redactor


class Credential:
    """A key for the upstream: the operator's or a payer's.

    Args:
        key: the key; None sends no key.
        funding_id: the payer's funding with this key. None for the operator's key.
    """

    __slots__ = ("authorization", "funding_id", "redactor")

    def __init__(self, key: str | None, funding_id: str | None = None) -> None:
        key = hidden(key)
        self.authorization = None if not key else Secret(f"Bearer {key}")
        self.redactor = Redactor(key)
        self.funding_id = funding_id

    @property
    def is_payers(self) -> bool:
        """True for a payer's own key. If the upstream refuses it, the payer must act."""
        return self.funding_id is not None

    def __repr__(self) -> str:
        return "Credential()"


class PayerKeys(Protocol):
    """The keys of the payers, by funding."""

    async def credential(self, funding_id: str, *, fresh: bool = False) -> Credential:
        """The key of this funding.

        Args:
            fresh: True to read the database, even if the key is in memory.

        Raises:
            WattfareFundingError: the key was removed, or cannot be decrypted.
            WattfareError: 503; the database is unavailable.
        """
        ...

    async def refused(self, funding_id: str) -> None:
        """Record that the upstream has refused this key. It cannot pay until the payer connects it
        again."""
        ...
