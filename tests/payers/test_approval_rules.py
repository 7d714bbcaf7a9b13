"""The approval rules, for any values."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattfare_mw.errors import WattfareError
from wattfare_mw.service import keys
from wattfare_mw.service.payers import approvals
from wattfare_mw.service.payers.approvals import APPROVAL_SECONDS, Approval, ApprovalRequest

NOW = 1_796_000_000
ORIGIN = "https://app.example.com"
WISH = ApprovalRequest(
    kind="connection",
    app_id="a1",
    user_id="u1",
    origin=ORIGIN,
    return_url=f"{ORIGIN}/return",
    asked=10**9,
)
GRANT = msgspec.structs.replace(WISH, kind="grant", user_id=None, requests=3)
states = st.sampled_from(["pending", "approved", "denied", "redeemed"])


@dataclass(frozen=True)
class Asks:
    """The request that tries to redeem an approval."""

    kind: str = "connection"
    app_id: str = "a1"
    user_id: str | None = "u1"
    origin: str | None = ORIGIN
    secret: str = "secret"


def approved(requested: ApprovalRequest = WISH, **changes) -> Approval:
    approval = approvals.begin(requested, "secret", NOW)
    fields = {"state": "approved", "code_hash": keys.digest("code"), "payer_id": "p1"}
    return msgspec.structs.replace(approval, **{**fields, **changes})


def owner(approval: Approval | None, **changes) -> Approval:
    asks = Asks(**changes)
    return approvals.check_owner(approval, **vars(asks))


def refusal_of(function, *arguments, **named) -> WattfareError:
    with pytest.raises(WattfareError) as refusal:
        function(*arguments, **named)
    assert refusal.value.code == "invalid_request"
    return refusal.value


def test_ids_secrets_and_codes_cannot_be_guessed() -> None:
    made = {approvals.new_secret() for _ in range(1000)}
    assert len(made) == 1000
    # 32 characters of 6 bits each.
    assert {len(each) for each in made} == {32}
    first, second = (approvals.begin(WISH, "secret", NOW) for _ in range(2))
    assert first.id != second.id
    assert len(first.id) == 32
    assert first.expires_at == NOW + APPROVAL_SECONDS == NOW + 600
    assert "secret" not in repr(first)
    assert first.secret_hash not in repr(first)


def test_same_page_of_the_same_user_may_read_an_approval() -> None:
    assert owner(approved()).id
    assert owner(approved(), origin=None).id  # a client that is not a browser
    assert owner(approved(GRANT), kind="grant", user_id=None).id


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": "Secret"},
        {"secret": ""},
        {"user_id": "u2"},
        {"user_id": None},
        {"app_id": "a2"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"kind": "grant"},
        {"kind": "grant", "user_id": None},
    ],
)
def test_other_clients_get_the_same_refusal_as_for_an_unknown_approval(changes: dict) -> None:
    messages = {
        str(refusal_of(owner, approved(state=state), **changes))
        for state in ("pending", "approved", "denied", "redeemed")
    }
    refusal = refusal_of(owner, None)
    assert refusal.status == 403
    assert messages == {str(refusal)}


def test_page_of_a_grant_must_send_its_origin() -> None:
    assert refusal_of(owner, approved(GRANT), kind="grant", user_id=None, origin=None).status == 403


@given(
    states, st.integers(0, 2 * APPROVAL_SECONDS), st.sampled_from(["code", "", "Code", "secret"])
)
def test_only_an_approved_request_is_redeemed_with_its_code_in_time(
    state: str, age: int, code: str
) -> None:
    approval = approved(state=state, code_hash=None if state == "pending" else keys.digest("code"))
    if (state, code) == ("approved", "code") and age < APPROVAL_SECONDS:
        approvals.check_redeemable(approval, code, NOW + age)
    else:
        refusal = refusal_of(approvals.check_redeemable, approval, code, NOW + age)
        wrong_code = state == "approved" and age < APPROVAL_SECONDS
        assert refusal.status == (403 if wrong_code else 409)
        assert "code" not in str(refusal).replace("The code is not", "")


@given(states, st.integers(0, 2 * APPROVAL_SECONDS))
def test_only_a_pending_request_can_be_decided(state: str, age: int) -> None:
    approval = approved(state=state)
    if state == "pending" and age < APPROVAL_SECONDS:
        approvals.check_open(approval, NOW + age)
    else:
        refusal = refusal_of(approvals.check_open, approval, NOW + age)
        assert refusal.status == (409 if age < APPROVAL_SECONDS else 410)


@given(states, st.integers(0, 2 * APPROVAL_SECONDS), st.sampled_from(["p1", "p2"]))
def test_only_the_same_payer_can_answer_again(state: str, age: int, payer_id: str) -> None:
    again = approvals.may_answer_again(approved(state=state), payer_id, NOW + age)
    assert again == ((state, payer_id) == ("approved", "p1") and age < APPROVAL_SECONDS)


@given(st.none() | st.sampled_from(["p1", "p2"]), st.none() | st.sampled_from(["p1", "p2"]))
def test_payer_is_replaced_only_after_confirmation(current: str | None, agreed: str | None) -> None:
    if current in (None, agreed):
        approvals.check_replacement(current, agreed)
    else:
        assert refusal_of(approvals.check_replacement, current, agreed).status == 409


@pytest.mark.parametrize(
    ("asked", "current", "proposed"),
    [
        (5, None, 5),
        (5, 3, 5),
        (5, 8, 8),
        (0, None, 0),
        (None, None, approvals.DEFAULT_CAP),
        (None, 20 * 10**9, 20 * 10**9),
    ],
)
def test_proposed_cap(asked: int | None, current: int | None, proposed: int) -> None:
    requested = msgspec.structs.replace(WISH, asked=asked)
    assert approvals.proposed_cap(requested, current) == proposed
