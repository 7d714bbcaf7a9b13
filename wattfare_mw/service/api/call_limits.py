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

    def hold(self, app_id: str, payer: tuple[str | None, str | None]) -> _Held:
        """Count one call, from before its body is read until the end of a ``with`` block.

        Raises:
            WattfareRateLimitError: 429; the user, the grant or the app has reached its limit.
        """
        key = (app_id, *payer)
        # Count for the payer first, so that a refused call of a user does not count for the app.
        self._payers.add(key)
        try:
            self._apps.add(app_id)
        except BaseException:
            self._payers.remove(key)
            raise
        return _Held(self._payers, key, self._apps, app_id)


class _Held:
    """A call that counts for its payer and for its app, until the end of its ``with`` block."""

    __slots__ = ("_app_id", "_apps", "_key", "_payers")

    def __init__(self, payers: CallsAtOnce, key: Hashable, apps: CallsAtOnce, app_id: str) -> None:
        self._payers = payers
        self._key = key
        self._apps = apps
        self._app_id = app_id

    def __enter__(self) -> None:
        """Start the call."""

    def __exit__(self, *error: object) -> None:
        self._apps.remove(self._app_id)
        self._payers.remove(self._key)
