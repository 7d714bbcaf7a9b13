"""Approvals. An app asks a person for a budget, and the person allows or denies it.

This module has pure functions over immutable values. :mod:`.approval_store` applies them in SQL.

An approval is ``pending`` until a person allows or denies it. Once it is allowed, a one-time code
goes to the app in that person's browser. Nothing is connected until the app's own page redeems the
approval: with the code, with the secret that only this page has, and for the same user of the same
app. So an attacker gains nothing by mailing a link to their own approval. The code would reach the
browser of the person who clicked, but the secret and the session are in the attacker's browser.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Literal

import msgspec

from ...errors import WattfareError, invalid_request
from .. import keys

#: The maximum time from the creation of an approval until it is redeemed, in seconds.
APPROVAL_SECONDS = 600
#: The cap that the page proposes if the app asks for none: 10 USD, in nano-dollars.
DEFAULT_CAP = 10 * 10**9
#: The lengths of an id, a secret and a code, in bytes.
_RANDOM_BYTES = 24

Kind = Literal["connection", "grant"]
State = Literal["pending", "approved", "denied", "redeemed"]


class ApprovalRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request of an app.

    Attributes:
        kind: a connection with a monthly cap, or a one-time grant.
        user_id: the app's own id of the user; None for a grant.
        epoch: how many times the user's connection had been revoked when the approval began.
        origin: the origin of the app's page.
        return_url: the page to which the browser returns.
        account_label: the name of the user's account at the app.
        asked: the cap that the app asks for, in nano-dollars; None if it asks for no specific cap.
        requests: the number of calls of a grant.
    """

    kind: Kind
    app_id: str
    user_id: str | None = None
    epoch: int = 0
    origin: str
    return_url: str
    account_label: str | None = None
    asked: int | None = None
    requests: int | None = None


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """An approval request and its state.

    Attributes:
        replaces: another payer whose connection ends when this approval is redeemed, with the
            consent of the person who allowed it. None if there is no such payer.
        left: True if the person has closed the page.
    """

    id: str
    requested: ApprovalRequest
    secret_hash: str
    state: State
    created_at: int
    expires_at: int
    code_hash: str | None = None
    payer_id: str | None = None
    cap: int | None = None
    funding_id: str | None = None
    replaces: str | None = None
    left: bool = False

    def __repr__(self) -> str:
        return f"Approval({self.id!r}, state={self.state!r})"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a person who allows a request.

    Attributes:
        payer_id: the person.
        cap: for each month, in nano-dollars; None for no cap. Not used for a grant.
        funding_id: the funding that pays; None for the operator's.
        replaces: the other payer whose connection the person has agreed to end.
    """

    payer_id: str
    cap: int | None = None
    funding_id: str | None = None
    replaces: str | None = None


def new_secret() -> str:
    """A random id, secret or code of 192 bits."""
    return secrets.token_urlsafe(_RANDOM_BYTES)


def begin(requested: ApprovalRequest, secret: str, now: int) -> Approval:
    """A new approval."""
    return Approval(
        id=new_secret(),
        requested=requested,
        secret_hash=keys.digest(secret),
        state="pending",
        created_at=now,
        expires_at=now + APPROVAL_SECONDS,
    )


def is_over(approval: Approval, now: int) -> bool:
    """True if it has expired."""
    return now >= approval.expires_at


def proposed_cap(requested: ApprovalRequest, current: int | None) -> int:
    """The initial value of the cap field, in nano-dollars: the app's request (by default
    :data:`DEFAULT_CAP`), or the same payer's current cap if that is higher."""
    proposed = DEFAULT_CAP if requested.asked is None else requested.asked
    return proposed if current is None else max(proposed, current)


def check_open(approval: Approval, now: int) -> None:
    """Raise an error if this approval cannot be answered any more."""
    if is_over(approval, now):
        raise invalid_request("This request is more than ten minutes old. Start again.", 410)
    if approval.state != "pending":
        raise answered_before()


def may_answer_again(approval: Approval, payer_id: str, now: int) -> bool:
    """True if this payer has allowed the approval, and it is neither redeemed nor expired. After a
    double click, the browser sends the form twice and shows only the second answer, so the second
    one must succeed, too."""
    return (
        approval.state == "approved"
        and approval.payer_id == payer_id
        and not is_over(approval, now)
    )


def check_replacement(current: str | None, agreed: str | None) -> None:
    """Raise an error if another payer is connected now, and the person has not agreed to end that
    payer's connection.

    Args:
        current: the other payer who is connected now; None if there is none.
        agreed: the payer whose connection the person has agreed to end.
    """
    if current is not None and current != agreed:
        raise invalid_request(
            "Another person has connected their budget in the meantime. Start again.", 409
        )


def check_owner(
    approval: Approval | None,
    *,
    kind: Kind,
    app_id: str,
    user_id: str | None,
    origin: str | None,
    secret: str,
) -> Approval:
    """The approval, if this page may read it: a page of the same app, for the same user, with the
    secret. The error does not show which of these is wrong, or whether the approval exists.

    Args:
        origin: the origin of the page that asks; None if the request has none.

    Raises:
        WattfareError: ``invalid_request``, 403.
    """
    if (
        approval is None
        or not hmac.compare_digest(approval.secret_hash, keys.digest(secret))
        or (approval.requested.kind, approval.requested.app_id) != (kind, app_id)
        or approval.requested.user_id != user_id
        or not _of_its_page(approval, origin)
    ):
        raise _not_yours()
    return approval


def check_redeemable(approval: Approval, code: str, now: int) -> None:
    """Raise an error if this code does not redeem the approval.

    Raises:
        WattfareError: ``invalid_request``, 409 if the approval is not open, 403 if the code is
            wrong.
    """
    if is_over(approval, now):
        raise _state("This approval has expired, because it was not redeemed within ten minutes.")
    if approval.state == "pending":
        raise _state("This approval has not been answered yet.")
    if approval.state == "denied":
        raise _state("This approval was denied.")
    if approval.state == "redeemed":
        raise redeemed_before()
    if approval.code_hash is None or not hmac.compare_digest(approval.code_hash, keys.digest(code)):
        raise invalid_request("The code is not valid for this approval.", 403)


def answered_before() -> WattfareError:
    """The error for an approval that cannot be answered any more."""
    return _state("This request has already been answered.")


def redeemed_before() -> WattfareError:
    """The error for an approval that was redeemed."""
    return _state("This approval has already been redeemed.")


def revoked_since() -> WattfareError:
    """The error for a connection that was revoked, or that another payer replaced, after the
    approval began."""
    return _state("The connection was revoked after this approval began: start again.")


def _of_its_page(approval: Approval, origin: str | None) -> bool:
    if (
        origin is None
    ):  # not a browser: a session token is enough, because only the app can create it
        return approval.requested.kind == "connection"
    return approval.requested.origin == origin


def _state(message: str) -> WattfareError:
    return invalid_request(message, 409)


def _not_yours() -> WattfareError:
    return invalid_request(
        "This is not an approval of this app and user, or the secret is wrong.", 403
    )
