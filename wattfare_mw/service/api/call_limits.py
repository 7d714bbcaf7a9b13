"""Limits the concurrent inference calls of one payer and of one app."""

from __future__ import annotations

from collections.abc import Hashable

from ...calls_at_once import CallsAtOnce


class CallLimits:
    """Counts the inference calls of this process.

    Each process counts only its own calls. So counting needs no query, and a call is counted before
    its body is read. If a process dies, no count needs to be corrected.

    Args:
        per_user: the maximum number of running calls of one user at one app. A grant counts like a
            user.
        per_app: the maximum number of running calls of one app.
    """

    def __init__(self, per_user: int, per_app: int) -> None:
        self._payers = CallsAtOnce(
            per_user,
            f"A user or a grant may have at most {per_user:,} running calls. Wait until one ends.",
        )
        self._apps = CallsAtOnce(
            per_app, f"An app may have at most {per_app:,} running calls. Wait until one ends."
        )

    def add(self, app_id: str, payer: Hashable) -> None:
        """Count one call, until :meth:`remove` is called for it.

        Raises:
            WattfareRateLimitError: 429; the user, the grant or the app has reached its limit.
        """
        # Count for the payer first, so that a refused call of a user does not count for the app.
        self._payers.add(payer)
        try:
            self._apps.add(app_id)
        except BaseException:
            self._payers.remove(payer)
            raise

    def remove(self, app_id: str, payer: Hashable) -> None:
        """Stop counting a call that :meth:`add` has counted."""
        self._apps.remove(app_id)
        self._payers.remove(payer)
