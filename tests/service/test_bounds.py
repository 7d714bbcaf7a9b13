"""Bounds that hold: the prompt's, whatever reads it; the cost's, whatever is generated; and a
limit that what is granted always pays for."""

from __future__ import annotations

import json
import unicodedata
from datetime import datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prices import flat_prices, prices, provider_cost, token_counts
from support.service import chat_body

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat import prompt_bound
from wattfare_mw.service.chat import request as chat_request
from wattfare_mw.service.chat.price import Price
from wattfare_mw.service.chat.request import FLOOR_TOKENS
from wattfare_mw.service.chat.usage import TokenCounts

counts = st.integers(0, 10**7)

texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\0")
    | st.sampled_from("\ufdfa\u0958\ufb2c\U0001d160ä\u0323\u0301각'\"\\\n\u2028"),
    max_size=40,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts},
        optional={"name": texts},
    ),
    min_size=1,
    max_size=5,
)
tools = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": texts, "parameters": st.dictionaries(texts, texts | st.lists(texts))}
            ),
        }
    ),
    max_size=2,
)


@given(messages, tools)
def test_no_tokenizer_makes_more_of_a_prompt(messages: list, tools: list) -> None:
    body = {"model": "m", "messages": messages, **({"tools": tools} if tools else {})}
    # A chat template at its most wordy, read byte by byte in any of the forms that are in use.
    written = "".join(
        f"<|im_start|>{message['role']} {message.get('name', '')}\n{message['content']}<|im_end|>\n"
        for message in messages
    )
    written += json.dumps(tools)
    for form in ("NFC", "NFKC"):
        around = len(messages) * (len("<|im_start|>  \n<|im_end|>\n") - 7)  # a tag is a token
        tokens = len(unicodedata.normalize(form, written).encode()) - around
        assert tokens <= prompt_bound.bound(body)
    assert len(written.encode()) - around <= prompt_bound.bound(body)


@pytest.mark.parametrize(
    "text", ["\ufdfa" * 9, "a\u0308\u0323" * 9, "ä\u0323" * 9, "\u0958" * 9, "\u1e9b" * 9]
)
def test_text_that_grows_when_it_is_normalized(text: str) -> None:
    with_it = prompt_bound.bound(chat_body(text))
    without = prompt_bound.bound(chat_body(""))
    longest = max(
        len(unicodedata.normalize(form, text).encode()) for form in ("NFC", "NFKC", "NFD")
    )
    assert with_it - without >= longest


def test_each_message_has_its_template_around_it() -> None:
    message = {"role": "user", "content": "x"}
    one, two = (prompt_bound.bound({"messages": [message] * times}) for times in (1, 2))
    assert two - one == len('{"role":"user","content":"x"},') + prompt_bound.PER_MESSAGE


def test_what_a_template_writes_anew_counts() -> None:
    def with_arguments(arguments: str) -> int:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return prompt_bound.bound({"messages": [{"role": "assistant", "tool_calls": [call]}]})

    arguments = json.dumps([1] * 50, separators=(",", ":"))
    written_anew = json.dumps([1] * 50)
    assert with_arguments(arguments) - with_arguments("") >= len(written_anew) > len(arguments)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"日": ["本"] * 20}}}
    written = len(json.dumps([tool]))
    bound = prompt_bound.bound({"messages": [], "tools": [tool]})
    assert bound > written + prompt_bound.PER_CALL + prompt_bound.WITH_TOOLS
    assert prompt_bound.bound({"messages": [], "tools": []}) < prompt_bound.PER_CALL + 100


def test_a_bound_takes_no_more_time_than_the_text_is_long() -> None:
    # In one piece, its marks would be sorted in the square of their number.
    text = "a" + "\u0301\u0323" * 200_000
    assert prompt_bound.bound(chat_body(text)) > len(text)


def sent(used: TokenCounts, more: int = 0, images: int = 0) -> TokenCounts:
    """What is known of such a prompt before it is sent."""
    return TokenCounts(
        prompt=used.prompt + more,
        audio=used.audio + used.audio_cache_read,
        image=used.image + min(more, images),
        images=used.images + images,
    )


@given(prices, token_counts(), st.integers(0, 5), st.integers(0, 5), counts, counts, st.datetimes())
def test_a_cost_is_exact_and_within_its_bound(
    price: Price,
    used: TokenCounts,
    searches: int,
    images: int,
    more: int,
    still_more: int,
    moment: datetime,
) -> None:
    used = msgspec.structs.replace(used, searches=searches, images=images)
    cost = price.cost(used, moment)
    bound = price.bound(sent(used), used.completion, searches)
    for added in (0, images):
        larger = price.bound(sent(used, more, added), used.completion + still_more, searches)
        assert bound <= larger
    assert 0 <= cost <= bound
    exact = provider_cost(price, used, moment)
    assert exact <= cost < exact + 1


@given(prices, counts, st.datetimes())
def test_more_tokens_of_an_answer(price: Price, tokens: int, moment: datetime) -> None:
    one, more = TokenCounts(prompt=10), TokenCounts(prompt=10, completion=tokens)
    added = price.cost(more, moment) - price.cost(one, moment)
    assert abs(price.cost_of_more(tokens, 10, moment) - added) <= 1


@given(flat_prices, st.integers(0, 10**15), st.integers(0, 10**9))
def test_what_an_amount_pays_for(price: Price, nanos: int, prompt: int) -> None:
    """As many tokens as it pays for, and not one more."""

    def cost(completion: int) -> int:
        return price.cost(TokenCounts(prompt=prompt, completion=completion))

    tokens = price.tokens_for(nanos, prompt)
    if tokens is None:
        assert cost(10**12) <= nanos
    elif tokens < 0:
        assert tokens == -1
        assert cost(0) > nanos
    else:
        assert cost(tokens) <= nanos < cost(tokens + 1)


@given(
    prices,
    st.integers(0, 10**6),
    st.integers(1, 128),
    st.integers(1, 10**6),
    st.integers(0, 10**14),
    st.integers(0, 10**14),
)
def test_what_is_granted_pays_for_the_lowered_limit(
    price, prompt, answers, most, granted, more
) -> None:
    limit = price.pays_for(granted, prompt, answers, most)
    assert 0 <= limit <= most
    assert limit == 0 or price.bound(prompt, answers * limit) <= granted
    # And for no token more, unless that is all that was asked for.
    assert limit == most or price.bound(prompt, answers * (limit + 1)) > granted
    assert price.pays_for(granted + more, prompt, answers, most) >= limit
    if granted >= price.bound(prompt, answers * most):
        assert limit == most


@given(
    st.none() | st.integers(1, chat_request.MAX_TOKENS),
    st.integers(1, chat_request.MAX_TOKENS),
    st.none() | st.integers(1, chat_request.MAX_TOKENS),
    st.booleans(),
)
def test_limits(asked, default, thinking, uncut) -> None:
    body = chat_body(max_tokens=asked, reasoning={"max_tokens": thinking})
    request = chat_request.read(msgspec.json.encode(body), uncut=uncut)
    wanted = asked or default
    try:
        least, most = request.limits(default)
    except WattfareError as refused:
        assert thinking >= wanted
        assert "reasoning.max_tokens" in refused.message  # noqa: PT017
        return
    assert most == wanted
    assert 1 <= least <= most
    assert least > (thinking or 0)
    assert least == (most if uncut else min(most, FLOOR_TOKENS + (thinking or 0)))


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ()),
        ({"max_tokens": None}, ()),
        ({"max_tokens": 9}, ("max_tokens",)),
        ({"max_completion_tokens": 9}, ("max_completion_tokens",)),
        (
            {"max_tokens": 9, "max_completion_tokens": 9},
            ("max_completion_tokens", "max_tokens"),
        ),
    ],
)
def test_a_limit_is_under_the_names_asked_for_and_no_other(fields: dict, names: tuple) -> None:
    request = chat_request.read(json.dumps(chat_body(**fields)).encode())
    assert request.limit_names == names
    assert request.limited(7, "new_name") == {**chat_body(), "new_name": 7}
