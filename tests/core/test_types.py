"""The types of the protocol: encoding, decoding, and invalid input."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wattfare_mw import (
    ConnectionStatus,
    CreatedSession,
    GrantResult,
    Limits,
    RequestLimit,
    SessionRequest,
    TokenUsage,
    Usage,
    WattfareError,
    calls,
)
from wattfare_mw.money import Usd
from wattfare_mw.types import decode, decode_raw, encode

AMOUNTS = st.one_of(
    st.decimals(min_value=0, max_value=10**12, allow_nan=False, allow_infinity=False),
    st.integers(0, 10**12).map(Decimal),
).map(Usd)
STATUSES = st.builds(
    ConnectionStatus,
    connected=st.booleans(),
    limits=st.none() | st.builds(Limits, st.none() | AMOUNTS),
    usage=st.builds(Usage, AMOUNTS),
    remaining_usd=st.none() | AMOUNTS,
)
#: Numbers as JSON may write them, and some invalid ones.
NUMERALS = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,25})?", fullmatch=True),
    st.sampled_from(["NaN", "Infinity", "01", "1.", ".5", "+1", "0x10", "1e"]),
)
VALUES = st.one_of(
    NUMERALS,
    st.sampled_from(["null", "true", "false", '"5"', '""', "[]", "{}", "[5]"]),
    st.text(max_size=5).map(json.dumps),
)


@given(STATUSES)
def test_status_survives_encoding(status: ConnectionStatus) -> None:
    wire = encode(status)
    assert decode(ConnectionStatus, wire) == status
    assert set(json.loads(wire)) == {"connected", "limits", "usage", "remainingUsd"}


def as_amount(numeral: str) -> Decimal | None:
    """The amount of a JSON value, by the standard library alone. None if it is invalid."""
    try:
        value = json.loads(numeral, parse_float=Decimal, parse_int=Decimal)
    except (ValueError, InvalidOperation):
        return None
    if not isinstance(value, Decimal) or not value.is_finite() or (value.is_signed() and value):
        return None
    return value if value <= 10**12 else None


@given(st.sampled_from(["true", "false"]) | VALUES, NUMERALS | VALUES, NUMERALS, NUMERALS | VALUES)
@example("true", "1e99999999999999999999", "0", "null")
@example("true", "1e999999999", "0", "1e-999999999")
@example("true", "-0", "0.10", "1E+5")
@example("1", "1", "1", "1")
def test_any_status_is_exact_or_a_typed_error(
    connected: str, limit: str, used: str, left: str
) -> None:
    body = (
        f'{{"connected": {connected}, "limits": {{"monthlyUsd": {limit}}},'
        f' "usage": {{"monthlyUsd": {used}}}, "remainingUsd": {left}}}'
    ).encode()
    amounts = [None if text == "null" else as_amount(text) for text in (limit, left)]
    valid = (
        connected in ("true", "false")
        and as_amount(used) is not None
        and all(
            text == "null" or amount is not None
            for text, amount in zip((limit, left), amounts, strict=True)
        )
    )
    if not valid:
        with pytest.raises(WattfareError) as caught:
            calls.status("u1").read(200, body)
        assert (caught.value.code, caught.value.status) == ("unknown", 200)
        return
    status = calls.status("u1").read(200, body)
    assert status.limits is not None
    assert status.connected is (connected == "true")
    assert [status.limits.monthly_usd, status.remaining_usd] == amounts
    assert status.usage.monthly_usd == as_amount(used)
    assert all(
        isinstance(amount, Usd | None) for amount in (status.limits.monthly_usd, *amounts[2:])
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["connected", "limits", "usage", "remainingUsd", "monthlyUsd", "token", "choices"]
            )
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_decodes_or_is_a_typed_error(value: Any) -> None:
    body = json.dumps(value).encode()
    for call in (
        calls.status("u1"),
        calls.create_session("u1"),
        calls.chat_completion("m", "Hi", None, {}, stream=False)(calls.payer_of("u")),
    ):
        try:
            call.read(200, body)
        except WattfareError as error:
            assert error.code == "unknown"  # noqa: PT017
            assert error.status == 200  # noqa: PT017


@given(st.binary())
@example(b"\xff")
@example(b'{"connected": true, "x": "\xff"')
@example(b"[" * 50_000)
@example(b'{"x":' * 50_000)
def test_any_bytes_decode_or_raise_a_msgspec_error(body: bytes) -> None:
    for read in (
        lambda: decode(ConnectionStatus, body),
        lambda: decode(dict[str, Any], body),
        lambda: decode_raw(body),
    ):
        with suppress(msgspec.MsgspecError):
            read()


def test_missing_fields_have_the_defaults_of_the_protocol() -> None:
    assert decode(ConnectionStatus, b'{"connected": false}') == ConnectionStatus(connected=False)
    assert encode(ConnectionStatus(connected=False, remaining_usd=Usd(0))) == (
        b'{"connected":false,"limits":null,"usage":{"monthlyUsd":0},"remainingUsd":0}'
    )
    assert encode(SessionRequest()) == b"{}"
    assert encode(SessionRequest(RequestLimit(20))) == b'{"requestLimit":{"monthlyUsd":20}}'
    grant = decode(GrantResult, b'{"grantToken":"g","expiresAt":5,"requests":2}')
    assert grant == GrantResult("g", 5, 2)
    assert TokenUsage() == TokenUsage(0, 0, 0)


def test_repr_hides_tokens() -> None:
    assert "hush" not in repr(CreatedSession("hush", 1))
    assert "hush" not in repr(GrantResult("hush", 1, 2))


def test_types_are_immutable() -> None:
    for value in (CreatedSession("t", 1), Usage(), RequestLimit(1)):
        with pytest.raises(AttributeError):
            value.expires_at = 2  # type: ignore[union-attr]


def test_value_without_a_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        encode({"x": object()})
    with pytest.raises(WattfareError, match="surrogate"):
        encode({"x": "\ud800"})
