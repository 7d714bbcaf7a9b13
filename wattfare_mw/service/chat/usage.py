"""Reads a provider's usage report of one call: the tokens of each kind, and the cost.

Providers use different names and count in different ways. This module converts all reports to one
form. An impossible part is ignored, such as a negative number or more cached tokens than prompt
tokens. The other parts still count. ``tests/providers`` has an example of each provider.

Two counts differ from provider to provider:

- *Reasoning*: OpenAI's completion tokens include it. xAI and Google count it separately, and only
  their total includes it. Perplexity's total does not include it.
- *Cached tokens*: OpenAI's prompt tokens include them. Anthropic's and Bedrock's own fields
  (``cache_read_input_tokens``) are separate counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, cast

import msgspec

from ... import money
from ...types import Json

#: A larger number of tokens is ignored as a mistake.
MAX_PLAUSIBLE_TOKENS = 10**9
#: xAI reports a cost in ticks. A dollar has this many ticks.
TICKS_PER_USD = 10**10


class TokenCounts(msgspec.Struct, frozen=True):
    """The tokens of a call by kind, because some providers have a price for each kind.

    Attributes:
        prompt: all tokens of the prompt.
        completion: all tokens of the answer.
        cache_read, cache_write, cache_write_1h, audio, audio_cache_read, image: parts of the
            prompt. They do not overlap.
        reasoning, audio_output, image_output: parts of the answer. They do not overlap.
        searches: the number of web searches that the provider made for the answer.
        images: the number of images in the request. Reports do not have it, so
            :class:`.meter.Meter` sets it.
    """

    prompt: int = 0
    completion: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    audio: int = 0
    audio_cache_read: int = 0
    image: int = 0
    reasoning: int = 0
    audio_output: int = 0
    image_output: int = 0
    searches: int = 0
    images: int = 0


#: The parts of the prompt, and of the answer.
PROMPT_PARTS = (
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "audio",
    "audio_cache_read",
    "image",
)
COMPLETION_PARTS = ("reasoning", "audio_output", "image_output")


class ReportedUsage(msgspec.Struct, frozen=True):
    """The contents of one report.

    Attributes:
        prompt: True if ``counts`` has prompt tokens. Each prompt has tokens, so 0 means that they
            were not reported.
        completion: True if ``counts`` has completion tokens. They can be 0.
        cost: the amount that the provider charges, in nano-dollars; None if it was not reported.
        only_total: the total tokens of the call, if the report has no other number; otherwise 0.
    """

    counts: TokenCounts
    prompt: bool
    completion: bool
    cost: int | None
    only_total: int = 0


def find(answer: dict[str, Any]) -> Iterable[tuple[int | None, dict[str, Any]]]:
    """The usage objects in an answer or a chunk, each with the index of its choice (None for the
    whole answer).

    A report for the whole answer comes from one place: ``usage``, a vendor's own key
    (``x_groq.usage``), or the answer itself (Google's, Ollama's and llama.cpp's own names). Some
    gateways write the cost next to ``usage``.
    """
    usage: Json = answer.get("usage")
    if isinstance(usage, dict) and usage:
        beside = answer.get("cost") if "cost" in answer else answer.get(_NANOGPT)
        if beside is not None and _COST_NAMES.isdisjoint(usage) and _is_in_usd(answer):
            usage = {**usage, "cost": beside}
        if any(usage.values()):
            return ((None, usage),)
        # Zeros are placeholders if the numbers are elsewhere.
        return tuple(_find_elsewhere(answer)) or ((None, usage),)
    return _find_elsewhere(answer)


def _find_elsewhere(answer: dict[str, Any]) -> Iterator[tuple[int | None, dict[str, Any]]]:
    for name, value in answer.items():
        if not isinstance(value, dict):
            continue
        fields = cast("dict[str, Any]", value)
        inner = fields if name in _OWN_NAMES else fields.get("usage")
        if name == _NANOGPT:
            inner = {**fields, "cost": fields}
        if isinstance(inner, dict):
            yield None, cast("dict[str, Any]", inner)
            return
    choices = answer.get("choices")
    # A chunk with only a cost is OpenCode Zen's. Next to text, it may be a time.
    if not _OWN_COUNTS.isdisjoint(answer) or ("cost" in answer and not choices):
        yield None, answer
        return
    if not isinstance(choices, list):
        return
    for place, choice in enumerate(cast("list[Any]", choices)):
        if not isinstance(choice, dict):
            continue
        usage = cast("dict[str, Any]", choice).get("usage")
        if isinstance(usage, dict):
            index = _count(cast("dict[str, Any]", choice).get("index"))
            yield (place if index is None else index), cast("dict[str, Any]", usage)


#: Other objects that report usage: Google's, Bedrock's and llama.cpp's.
_OWN_NAMES = frozenset(
    {"usageMetadata", "usage_metadata", "amazon-bedrock-invocationMetrics", "timings"}
)
#: Fields that only a report has.
_OWN_COUNTS = frozenset({"prompt_eval_count", "eval_count"})
#: NanoGPT's name of an object with the cost.
_NANOGPT = "x_nanogpt_pricing"


def read(usage: dict[str, Any]) -> ReportedUsage:
    """Read one usage object with any provider's names."""
    found: dict[str, int] = {}
    _collect(usage, _FIELDS, found)
    get = found.get
    total, completion = get("total"), get("completion")
    prompt = get("prompt") or get("input")
    if prompt is None and "misses" in found:
        prompt = get("hits", 0) + found["misses"]
    if prompt is None and total is not None and completion is not None:
        prompt = max(total - completion, 0)

    parts = answer = _NO_PARTS
    if not found.keys() <= _PLAIN:
        prompt = None if prompt is None else prompt + get("tool_use", 0)
        beside = get("read_beside", 0) + get("write_beside", 0)
        cached = beside or get("cache_read", 0) + get("cache_write", 0)
        if prompt is not None and cached and _are_separate(found, prompt, cached, beside):
            prompt += cached
        if get("audio_seconds") and prompt and total is not None and completion is not None:
            prompt = max(prompt, total - completion)
        parts = _plausible_parts(prompt or 0, _prompt_parts(found))
    reasoning = get("reasoning", 0)
    if total is not None and prompt and total - prompt > (completion or 0):
        completion = total - prompt
    elif completion is not None and reasoning > completion:
        # The completion tokens cannot include this reasoning. Perplexity's total does not include
        # it either.
        completion += reasoning
    if not _PARTS_OF_ANSWER.isdisjoint(found):
        answer = _plausible_parts(
            completion or 0, {name: get(name, 0) for name in COMPLETION_PARTS}
        )
    counts = TokenCounts(prompt or 0, completion or 0)
    if parts or answer or "searches" in found:
        searches = get("searches", 0)
        counts = msgspec.structs.replace(counts, searches=searches, **parts, **answer)
    return ReportedUsage(
        counts=counts,
        prompt=bool(prompt),
        completion=completion is not None,
        cost=_charged(usage),
        only_total=(total or 0) if not prompt and completion is None else 0,
    )


_Fields = Mapping[str, "str | _Fields"]

#: Anthropic's split of the written tokens by the time that they are kept.
_WRITTEN_FOR: _Fields = {
    "ephemeral_5m_input_tokens": "cache_write_5m",
    "ephemeral_1h_input_tokens": "cache_write_1h",
}
_OF_PROMPT: _Fields = {
    "cached_tokens": "cache_read",
    "cache_read_input_tokens": "cache_read",
    "cached_tokens_details": {"audio_tokens": "audio_cache_read"},
    "cache_write_tokens": "cache_write",
    "cache_creation_tokens": "cache_write",
    "cache_creation_input_tokens": "cache_write",
    "cached_creation_tokens": "cache_write",  # New API's
    "cache_creation": _WRITTEN_FOR,
    "cache_creation_token_details": _WRITTEN_FOR,
    "audio_tokens": "audio",
    "image_tokens": "image",
    "cache_read_tokens": "cache_read",
    "cache_read": "cache_read",
}
#: Google lists the tokens of each kind: ``[{"modality": "AUDIO", "tokenCount": 80}]``.
_MODALITIES_OF_PROMPT: _Fields = {"AUDIO": "audio", "IMAGE": "image"}
_MODALITIES_OF_CACHE: _Fields = {"AUDIO": "audio_cache_read"}
_MODALITIES_OF_ANSWER: _Fields = {"AUDIO": "audio_output", "IMAGE": "image_output"}
_OF_ANSWER: _Fields = {
    "reasoning_tokens": "reasoning",
    "audio_tokens": "audio_output",
    "image_tokens": "image_output",
}
#: The names of the counts, and their meanings. ``read_beside`` and ``write_beside`` are cached
#: tokens that the provider does not include in the prompt tokens. ``input`` is the number of prompt
#: tokens without cached ones. ``tool_use`` is the text that Google's own tools add to a prompt,
#: which Google counts separately. ``audio_seconds`` is the length of the prompt's audio. Its tokens
#: are only in Mistral's total.
_FIELDS: _Fields = {
    "prompt_tokens": "prompt",
    "promptTokenCount": "prompt",
    "promptTokens": "prompt",
    "prompt_eval_count": "prompt",
    "input_tokens": "input",
    "inputTokens": "input",
    "inputTokenCount": "input",
    "completion_tokens": "completion",
    "output_tokens": "completion",
    "candidatesTokenCount": "completion",
    "outputTokens": "completion",
    "outputTokenCount": "completion",
    "completionTokens": "completion",
    "eval_count": "completion",
    "total_tokens": "total",
    "totalTokenCount": "total",
    "totalTokens": "total",
    "prompt_tokens_details": _OF_PROMPT,
    "prompt_token_details": _OF_PROMPT,
    "input_token_details": _OF_PROMPT,
    "input_tokens_details": _OF_PROMPT,
    "prompt_cache_hit_tokens": "hits",
    "prompt_cache_miss_tokens": "misses",
    "cached_tokens": "cache_read",
    "cache_read_tokens": "cache_read",
    "cache_write_tokens": "cache_write",
    "num_cached_tokens": "cache_read",
    "cached_prompt_tokens": "cache_read",
    "cached_prompt_text_tokens": "cache_read",
    "cachedContentTokenCount": "cache_read",
    "prompt_eval_cached_count": "cache_read",
    "cache_read_input_tokens": "read_beside",
    "cacheReadInputTokens": "read_beside",
    "cacheReadInputTokenCount": "read_beside",
    "cacheReadInputTokensCount": "read_beside",
    "cache_creation_input_tokens": "write_beside",
    "cacheWriteInputTokens": "write_beside",
    "cacheWriteInputTokenCount": "write_beside",
    "cacheWriteInputTokensCount": "write_beside",
    "cache_creation": _WRITTEN_FOR,
    "claude_cache_creation_5_m_tokens": "cache_write_5m",
    "claude_cache_creation_1_h_tokens": "cache_write_1h",
    "completion_tokens_details": _OF_ANSWER,
    "completion_token_details": _OF_ANSWER,
    "output_tokens_details": _OF_ANSWER,
    "toolUsePromptTokenCount": "tool_use",
    "prompt_audio_seconds": "audio_seconds",
    "thoughtsTokenCount": "reasoning",
    "reasoning_tokens": "reasoning",
    "server_tool_use": {"web_search_requests": "searches"},
    "server_tool_use_details": {"web_search_requests": "searches"},
    "server_side_tool_usage_details": {"web_search_calls": "searches"},
    "num_search_queries": "searches",
    # DashScope's and Cohere's names. Cohere bills fewer tokens than the model reads.
    "plugins": {"search": {"count": "searches"}},
    "billed_units": {"input_tokens": "prompt", "output_tokens": "completion"},
    "promptTokensDetails": _MODALITIES_OF_PROMPT,
    "cacheTokensDetails": _MODALITIES_OF_CACHE,
    "candidatesTokensDetails": _MODALITIES_OF_ANSWER,
    # Google's own names, as its Python library writes them.
    "cache_tokens_details": _MODALITIES_OF_CACHE,
    "candidates_tokens_details": _MODALITIES_OF_ANSWER,
    "prompt_token_count": "prompt",
    "candidates_token_count": "completion",
    "total_token_count": "total",
    "thoughts_token_count": "reasoning",
    "cached_content_token_count": "cache_read",
    "tool_use_prompt_token_count": "tool_use",
    # llama.cpp's names. ``prompt_n`` does not include cached tokens.
    "prompt_n": "input",
    "cache_n": "read_beside",
    "predicted_n": "completion",
}
_PLAIN = frozenset({"prompt", "completion", "total"})
_PARTS_OF_ANSWER = frozenset(COMPLETION_PARTS)
_NO_PARTS: dict[str, int] = {}
_COST = (
    # A plain ``cost`` may be in credits.
    *("cost_usd", "total_cost_usd", "cost_usd_total"),
    *("cost", "total_cost", "estimated_cost"),
)
_COST_NAMES = frozenset({*_COST, "cost_in_usd_ticks", "usd_cents", "is_byok"})
_COST_TOTAL = (
    *("total_cost", "total", "total_cost_usd", "total_usd"),
    *("costUsd", "cost", "amount", "usd"),  # NanoGPT's, and others
)


def is_usd(currency: object) -> bool:
    """True if the currency of a cost or a price is USD. Few providers name it."""
    return currency is None or (isinstance(currency, str) and currency.upper() in _USD)


_USD = ("USD", "US$", "$")


def _is_in_usd(report: dict[str, Any]) -> bool:
    return is_usd(report.get("currency")) and is_usd(report.get("cost_currency"))


def _collect(usage: dict[str, Any], fields: _Fields, found: dict[str, int]) -> None:
    """Collect the counts by their meaning. If two names have the same meaning, the first count
    above 0 is used."""
    for name, value in usage.items():
        meaning = fields.get(name)
        if meaning is None or value is None:
            continue
        if isinstance(meaning, str):
            count = value if type(value) is int and 0 <= value < 10**6 else _count(value)
            if count is not None and not found.get(meaning):
                found[meaning] = count
        elif isinstance(value, dict):
            _collect(cast("dict[str, Any]", value), meaning, found)
        elif isinstance(value, list):
            for item in cast("list[Any]", value):
                if isinstance(item, dict):
                    _collect(_of_modality(cast("dict[str, Any]", item)), meaning, found)


def _of_modality(item: dict[str, Any]) -> dict[str, Any]:
    """One kind of token in Google's list, by its name."""
    modality, count = item.get("modality"), item.get("tokenCount", item.get("token_count"))
    return {modality: count} if isinstance(modality, str) else {}


def _prompt_parts(found: dict[str, int]) -> dict[str, int]:
    get = found.get
    read = get("cache_read") or get("hits") or get("read_beside", 0)
    split = get("cache_write_5m", 0) + get("cache_write_1h", 0)
    written = get("cache_write") or get("write_beside") or split
    for_an_hour = min(get("cache_write_1h", 0), written)
    audio = get("audio", 0)
    cached_audio = min(get("audio_cache_read", 0), audio, read)
    return {
        "cache_read": read - cached_audio,
        "audio_cache_read": cached_audio,
        "cache_write": written - for_an_hour,
        "cache_write_1h": for_an_hour,
        "audio": audio - cached_audio,
        "image": get("image", 0),
    }


def _are_separate(found: dict[str, int], prompt: int, cached: int, beside: int) -> bool:
    """True if the cached tokens are not part of the prompt tokens.

    Args:
        beside: cached tokens in a field that is always a separate count.
    """
    if beside and ("prompt" not in found or beside > prompt):
        return True
    says_so = found.get("total") == prompt + found.get("completion", 0) + cached
    return says_so and (beside > 0 or cached > prompt or cached != found.get("reasoning", 0))


def _plausible_parts(whole: int, parts: dict[str, int]) -> dict[str, int]:
    """The parts that fit into the whole, in this order. Other parts are impossible, and are left
    out."""
    left = whole
    fitting: dict[str, int] = {}
    for name, count in parts.items():
        fitting[name] = count if count <= left else 0
        left -= fitting[name]
    return fitting


def _count(value: object) -> int | None:
    """A number of tokens. Some providers write it as text or with a decimal point."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        whole, _, fraction = value.strip().partition(".")
        is_whole = whole.isascii() and whole.isdigit() and len(whole) < 11
        value = int(whole) if is_whole and not fraction.strip("0") else None
    elif isinstance(value, (Decimal, float)):
        whole = 0 <= value <= MAX_PLAUSIBLE_TOKENS and value == int(value)
        value = int(value) if whole else None
    if not isinstance(value, int) or not 0 <= value <= MAX_PLAUSIBLE_TOKENS:
        return None
    return value


def _charged(usage: dict[str, Any]) -> int | None:
    """The amount that the provider charges for the call, in nano-dollars, or None.

    With the operator's own key at the model's provider (BYOK), OpenRouter charges only its fee, and
    the provider charges the rest separately. OpenRouter also fills the field for this rest on other
    calls, but there the cost includes it.
    """
    cost = None
    if _is_in_usd(usage):
        for name in _COST:
            value = usage.get(name)
            if value is not None and (cost := _usd(value)) is not None:
                break
    if usage.get("is_byok") is True:
        rest = _upstream_cost(usage.get("cost_details"))
        return None if rest is None else _nanos((cost or Decimal(0)) + rest)
    if cost:
        return money.nanos_ceil(cost)
    ticks = usage.get("cost_in_usd_ticks")
    if isinstance(ticks, (Decimal, float)) and 0 <= ticks < 10**20 and ticks == int(ticks):
        ticks = int(ticks)
    if isinstance(ticks, str) and ticks.isascii() and ticks.isdigit() and len(ticks) < 20:
        ticks = int(ticks)
    if type(ticks) is int and 0 <= ticks <= money.MAX_CAP_USD * TICKS_PER_USD:
        return _nanos(Decimal(ticks) / TICKS_PER_USD)
    cents = _usd(usage.get("usd_cents"))  # Puter's
    if cents is not None:
        return _nanos(Decimal(cents) / 100)
    return None if cost is None else 0


def _upstream_cost(details: object) -> Decimal | None:
    """What the model's provider charges beside OpenRouter's fee. Some answers have only its two
    parts."""
    if not isinstance(details, dict):
        return None
    fields = cast("dict[str, Any]", details)
    whole = _usd(fields.get("upstream_inference_cost"))
    if whole is not None:
        return Decimal(whole)
    prompt = _usd(fields.get("upstream_inference_prompt_cost"))
    completion = _usd(fields.get("upstream_inference_completions_cost"))
    return None if prompt is None or completion is None else Decimal(prompt) + completion


def _nanos(usd: Decimal) -> int | None:
    try:
        return money.nanos_ceil(money.amount(usd, most=money.MAX_CAP_USD))
    except ValueError:
        return None


def _usd(value: object) -> money.Usd | None:
    """An amount in USD: a number, a number as text, or an object with the total."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if not is_usd(fields.get("currency")):
            return None
        totals = (_usd(fields.get(name)) for name in _COST_TOTAL if name in fields)
        return next((total for total in totals if total is not None), None)
    if isinstance(value, str):
        try:
            value = Decimal(value.strip().removeprefix("$").removesuffix("USD").strip())
        except InvalidOperation:
            return None
    try:
        return money.amount(value, most=money.MAX_CAP_USD)
    except ValueError:
        return None
