"""Bounds that hold: of the prompt, for any tokenizer; of the cost, for any answer; and a lowered
limit that the reservation always covers."""

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
def test_no_tokenizer_exceeds_the_prompt_bound(messages: list, tools: list) -> None:
    body = {"model": "m", "messages": messages, **({"tools": tools} if tools else {})}
    # The longest chat template, read byte by byte in each form in use.
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
def test_text_that_grows_by_normalization_stays_within_its_bound(text: str) -> None:
    with_it = prompt_bound.bound(chat_body(text))
    without = prompt_bound.bound(chat_body(""))
    longest = max(
        len(unicodedata.normalize(form, text).encode()) for form in ("NFC", "NFKC", "NFD")
    )
    assert with_it - without >= longest


def test_each_message_counts_its_template() -> None:
    message = {"role": "user", "content": "x"}
    one, two = (prompt_bound.bound({"messages": [message] * times}) for times in (1, 2))
    assert two - one == len('{"role":"user","content":"x"},') + prompt_bound.PER_MESSAGE


def test_text_repeated_by_a_template_counts() -> None:
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
    form = {"messages": [], "response_format": {"type": "json_object"}}
    assert prompt_bound.bound(form) > prompt_bound.PER_CALL + prompt_bound.WITH_TOOLS


def test_bound_takes_linear_time() -> None:
    # In one piece, sorting its marks would take quadratic time.
    text = "a" + "\u0301\u0323" * 200_000
    assert prompt_bound.bound(chat_body(text)) > len(text)


def sent(used: TokenCounts, more: int = 0, images: int = 0) -> TokenCounts:
    """What the service knows of such a prompt before it sends it."""
    return TokenCounts(
        prompt=used.prompt + more,
        audio=used.audio + used.audio_cache_read,
        image=used.image + min(more, images),
        images=used.images + images,
    )


@given(prices, token_counts(), st.integers(0, 5), st.integers(0, 5), counts, counts, st.datetimes())
def test_cost_is_exact_and_within_its_bound(
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
def test_more_completion_tokens_never_lower_the_bound(
    price: Price, tokens: int, moment: datetime
) -> None:
    one, more = TokenCounts(prompt=10), TokenCounts(prompt=10, completion=tokens)
    added = price.cost(more, moment) - price.cost(one, moment)
    assert abs(price.cost_of_more(tokens, 10, moment) - added) <= 1


@given(flat_prices, st.integers(0, 10**15), st.integers(0, 10**9))
def test_pays_for_returns_the_highest_affordable_count(
    price: Price, nanos: int, prompt: int
) -> None:
    """Returns as many tokens as the amount pays for, and not one more."""

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
def test_granted_amount_pays_for_the_lowered_limit(
    price, prompt, answers, most, granted, more
) -> None:
    limit = price.pays_for(granted, prompt, answers, most)
    assert 0 <= limit <= most
    assert limit == 0 or price.bound(prompt, answers * limit) <= granted
    # It pays for no further token, unless the full limit was granted.
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
def test_limits_of_a_request(asked, default, thinking, never_shorten) -> None:
    body = chat_body(max_tokens=asked, reasoning={"max_tokens": thinking})
    request = chat_request.read(msgspec.json.encode(body), never_shorten=never_shorten)
    least, most = request.limits(default)
    assert most == (asked or default)
    assert 1 <= least <= most
    assert least == most or least > (thinking or 0)
    assert least == (most if never_shorten else min(most, FLOOR_TOKENS + (thinking or 0)))


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
def test_limit_is_set_under_the_requested_names_only(fields: dict, names: tuple) -> None:
    request = chat_request.read(json.dumps(chat_body(**fields)).encode())
    assert request.limit_names == names
    assert request.limited(7, "new_name") == {**chat_body(), "new_name": 7}
