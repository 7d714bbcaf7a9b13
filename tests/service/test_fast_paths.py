"""The shortcuts of the hot path agree with the full rules that they replace."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat import allowed_fields
from wattfare_mw.service.chat.meter import Meter
from wattfare_mw.service.chat.price import Price
from wattfare_mw.service.chat.usage import TokenCounts
from wattfare_mw.service.models import offers, upstream_answers
from wattfare_mw.service.models.offers import Bound
from wattfare_mw.service.models.redaction import Redactor

REASONS = (None, "", "stop", "length", "tool_calls", "content_filter", "error", "other", 1)
rates = st.decimals(0, 1, places=9)


@given(st.text(), st.text())
def test_text_message_passes_both_rules(role: str, content: str) -> None:
    message = {"role": role, "content": content}
    assert allowed_fields._message("messages[0]", message) is None
    assert allowed_fields._MADE_BY_APP("messages[0]", message) is None
    assert allowed_fields._MADE_BY_MODEL("messages[0]", message) is None


def chunks() -> st.SearchStrategy[dict[str, Any]]:
    delta = st.fixed_dictionaries(
        {}, optional={"role": st.just("assistant"), "content": st.none() | st.text(max_size=5)}
    )
    choice = st.fixed_dictionaries(
        {"delta": delta},
        optional={
            "index": st.integers(-1, 200) | st.none(),
            "finish_reason": st.sampled_from(REASONS),
        },
    )
    return st.fixed_dictionaries({"choices": st.lists(choice, min_size=1, max_size=3)})


@given(chunks(), st.booleans())
def test_chunk_that_cannot_end_the_stream_is_not_checked(
    chunk: dict[str, Any], spaced: bool
) -> None:
    data = json.dumps(chunk, separators=None if spaced else (",", ":")).encode()
    price = Price.flat(Decimal(1), Decimal(1))
    try:
        read = upstream_answers.read_chunk(data, Meter(price, 1), Redactor(None))
    except WattfareError:
        return  # which ends the call
    if not read.may_end:
        finishes = upstream_answers.Finishes()
        finishes.record(data)
        assert not finishes.all_of(1)


@given(rates, rates, rates, st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 4))
def test_full_grant_lowers_no_limit(
    prompt: Decimal, completion: Decimal, request: Decimal, tokens: int, most: int, answers: int
) -> None:
    price = Price.flat(prompt, completion, request)
    found = [Bound(price, TokenCounts(prompt=tokens), 7)]
    bounds = offers.between(found, answers, answers * most)
    assert offers.limit(found, bounds.most, answers, most) == most
