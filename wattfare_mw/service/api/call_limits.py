"""How many inference calls run at once: of one payer, and of one app."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ...calls_at_once import CallsAtOnce


class CallLimits:
    """Counts the inference calls of this process.

    Each process counts its own, so that the count costs no question to the database, protects a
    process before it reads a body, and ends with the process.

    Args:
        per_user: the most calls at once of one user at one app. A grant counts like a user.
        per_app: the most calls at once of one app.
    """

    def __init__(self, per_user: int, per_app: int) -> None:
        self._payers = CallsAtOnce(
            per_user,
            f"At most {per_user:,} calls at once for one user or grant: wait until one ends.",
        )
        self._apps = CallsAtOnce(
            per_app, f"At most {per_app:,} calls at once for one app: wait until one ends."
        )

    @contextmanager
    def hold(self, app_id: str, payer: tuple[str | None, str | None]) -> Generator[None]:
        """Count one call, from before its body is read until it is settled, however it ends.

        Raises:
            WattfareRateLimitError: 429; the user, the grant or the app has as many as it may have.
        """
        # The payer first: a refused call of one user never counts against the app.
        with self._payers.hold((app_id, *payer)), self._apps.hold(app_id):
            yield
