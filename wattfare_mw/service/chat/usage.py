"""What a provider reports about one call: how many tokens of each kind, and what it charges.

Providers use different names, and count in different ways. This module reads all of them into one
shape. A part that cannot be true (a negative number, more cached tokens than the prompt has) is
ignored, and the other parts still count. ``tests/providers`` has an example of each provider.

Two counts differ from provider to provider:

- *Reasoning*: for OpenAI it is part of the completion tokens. xAI and Google count it beside them,
  and only the total includes it. Perplexity's total does not.
- *Cached tokens*: for OpenAI they are part of the prompt tokens. Anthropic's and Bedrock's own
  names (``cache_read_input_tokens``) stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, cast

import msgspec

from ... import money

#: A number of tokens above this is a mistake.
MAX_PLAUSIBLE_TOKENS = 10**9
#: xAI reports a cost in ticks. This many make a dollar.
TICKS_PER_USD = 10**10


class TokenCounts(msgspec.Struct, frozen=True):
    """Tokens by kind. A kind has its own price at some providers.

    Attributes:
        prompt: all tokens of the prompt.
        completion: all tokens of the answer.
        cache_read, cache_write, cache_write_1h, audio, audio_cache_read, image: parts of the
            prompt. They do not overlap.
        reasoning, audio_output, image_output: parts of the answer. They do not overlap.
        searches: how often the provider searched the web for the answer.
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
    """What one report says.

    Attributes:
        prompt: are there prompt tokens in ``counts``? No prompt has none, so 0 means no report.
        completion: are there completion tokens in it? They can be 0.
        cost: what the provider charges, in nano-dollars; None if it does not say.
    """

    counts: TokenCounts
    prompt: bool
    completion: bool
    cost: int | None


def find(answer: dict[str, Any]) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """The usage objects in an answer or a chunk, each with the index of its choice, or None.

    A report for the whole answer comes from one place: ``usage``, a vendor's own key
    (``x_groq.usage``), or the answer itself (Google's, Ollama's and llama.cpp's own names).
    """
    usage = answer.get("usage")
    if isinstance(usage, dict):
        yield None, cast("dict[str, Any]", usage)
        return
    for name, value in answer.items():
        if not isinstance(value, dict):
            continue
        fields = cast("dict[str, Any]", value)
        inner = fields if name in _OWN_NAMES else fields.get("usage")
        if isinstance(inner, dict):
            yield None, cast("dict[str, Any]", inner)
            return
    if not _OWN_COUNTS.isdisjoint(answer):
        yield None, answer
        return
    choices = answer.get("choices")
    if not isinstance(choices, list):
        return
    for place, choice in enumerate(cast("list[Any]", choices)):
        if not isinstance(choice, dict):
            continue
        usage = cast("dict[str, Any]", choice).get("usage")
        if isinstance(usage, dict):
            index = _count(cast("dict[str, Any]", choice).get("index"))
            yield (place if index is None else index), cast("dict[str, Any]", usage)


#: Objects beside ``usage`` that are usage: Google's, Bedrock's.
_OWN_NAMES = frozenset({"usageMetadata", "usage_metadata", "amazon-bedrock-invocationMetrics"})
#: Fields that only a report has.
_OWN_COUNTS = frozenset({"prompt_eval_count", "eval_count"})


def read(usage: dict[str, Any]) -> ReportedUsage:
    """One usage object, under any provider's names."""
    total = _first(usage, *_TOTAL)
    name, prompt = _named(usage, _PROMPT)
    completion = _first(usage, *_COMPLETION)
    hits, misses = _first(usage, "prompt_cache_hit_tokens"), _first(usage, _MISSES)
    if prompt is None and misses is not None:
        prompt = (hits or 0) + misses
    if prompt is None and total is not None and completion is not None:
        prompt = max(total - completion, 0)

    if name == "promptTokenCount":
        prompt = (prompt or 0) + (_first(usage, _TOOL_USE) or 0)

    parts = _prompt_parts(usage)
    cached = parts["cache_read"] + parts["cache_write"] + parts["cache_write_1h"]
    if prompt is not None and cached and _stand_beside(usage, name, prompt, completion, total):
        prompt += cached
    elif prompt is not None and cached > prompt and total == prompt + (completion or 0) + cached:
        prompt += cached  # the total says so
    parts = _plausible_parts(prompt or 0, parts)

    reasoning = _first(usage, *_REASONING) or 0
    if total is not None and prompt and total - prompt > (completion or 0):
        completion = total - prompt
    elif completion is not None and reasoning > completion:
        # It cannot be a part of them. Perplexity's total does not include it either.
        completion += reasoning
    answer = {
        "reasoning": reasoning,
        "audio_output": _first(usage, *_AUDIO_OUTPUT) or 0,
        "image_output": _first(usage, *_IMAGE_OUTPUT) or 0,
    }
    answer = _plausible_parts(completion or 0, answer)
    return ReportedUsage(
        counts=TokenCounts(
            prompt=prompt or 0,
            completion=completion or 0,
            searches=_first(usage, *_SEARCHES) or 0,
            **parts,
            **answer,
        ),
        prompt=bool(prompt),
        completion=completion is not None,
        cost=_charged(usage),
    )


# Where each count is found: a name, or the path to it.

_PROMPT = (
    "prompt_tokens",
    "input_tokens",
    "promptTokenCount",
    "inputTokenCount",
    "inputTokens",
    "promptTokens",
    "prompt_eval_count",
)
_COMPLETION = (
    "completion_tokens",
    "output_tokens",
    "candidatesTokenCount",
    "outputTokenCount",
    "outputTokens",
    "completionTokens",
    "eval_count",
)
_TOTAL = ("total_tokens", "totalTokenCount", "totalTokens")
_MISSES = "prompt_cache_miss_tokens"
#: What Google's own tools add to a prompt. It stands beside ``promptTokenCount``.
_TOOL_USE = "toolUsePromptTokenCount"
_DETAILS_IN = ("prompt_tokens_details", "input_tokens_details", "prompt_token_details")
_DETAILS_OUT = ("completion_tokens_details", "output_tokens_details", "completion_token_details")
#: Names for cached tokens that providers use beside their prompt tokens, not as a part of them.
_READ_BESIDE = ("cache_read_input_tokens", "cacheReadInputTokens", "cacheReadInputTokenCount")
_WRITE_BESIDE = (
    "cache_creation_input_tokens",
    "cacheWriteInputTokens",
    "cacheWriteInputTokenCount",
)
_CACHE_READ = (
    *((details, "cached_tokens") for details in _DETAILS_IN),
    *((details, "cache_read_input_tokens") for details in _DETAILS_IN),
    "prompt_cache_hit_tokens",
    "cached_tokens",
    "num_cached_tokens",
    "cachedContentTokenCount",
    "prompt_eval_cached_count",
    *_READ_BESIDE,
)
_CACHE_WRITE = (
    *((details, "cache_write_tokens") for details in _DETAILS_IN),
    *((details, "cache_creation_tokens") for details in _DETAILS_IN),
    *((details, "cache_creation_input_tokens") for details in _DETAILS_IN),
    *_WRITE_BESIDE,
)
_CACHE_WRITE_1H = (
    ("cache_creation", "ephemeral_1h_input_tokens"),
    *((details, "cache_creation", "ephemeral_1h_input_tokens") for details in _DETAILS_IN),
    *(
        (details, "cache_creation_token_details", "ephemeral_1h_input_tokens")
        for details in _DETAILS_IN
    ),
)
_AUDIO = tuple((details, "audio_tokens") for details in _DETAILS_IN)
_AUDIO_CACHE_READ = tuple(
    (details, "cached_tokens_details", "audio_tokens") for details in _DETAILS_IN
)
_IMAGE = tuple((details, "image_tokens") for details in _DETAILS_IN)
_REASONING = (
    *((details, "reasoning_tokens") for details in _DETAILS_OUT),
    "thoughtsTokenCount",
    "reasoning_tokens",
)
_AUDIO_OUTPUT = tuple((details, "audio_tokens") for details in _DETAILS_OUT)
_IMAGE_OUTPUT = tuple((details, "image_tokens") for details in _DETAILS_OUT)
_SEARCHES = (
    ("server_tool_use", "web_search_requests"),
    ("server_tool_use_details", "web_search_requests"),
    "num_search_queries",
    ("server_side_tool_usage_details", "web_search_calls"),
)
_COST = (
    "cost",
    "total_cost",
    "cost_usd",
    "total_cost_usd",
    "cost_usd_total",
    "estimated_cost",
)
_COST_TOTAL = ("total_cost", "total", "total_cost_usd", "total_usd", "amount", "usd")

#: The currency of a cost, which few providers name.
_USD = (None, "USD", "usd")

_Path = str | tuple[str, ...]


def _prompt_parts(usage: dict[str, Any]) -> dict[str, int]:
    read, written = _first(usage, *_CACHE_READ) or 0, _first(usage, *_CACHE_WRITE) or 0
    for_an_hour = min(_first(usage, *_CACHE_WRITE_1H) or 0, written)
    audio, cached_audio = _first(usage, *_AUDIO) or 0, _first(usage, *_AUDIO_CACHE_READ) or 0
    cached_audio = min(cached_audio, audio, read)
    return {
        "cache_read": read - cached_audio,
        "audio_cache_read": cached_audio,
        "cache_write": written - for_an_hour,
        "cache_write_1h": for_an_hour,
        "audio": audio - cached_audio,
        "image": _first(usage, *_IMAGE) or 0,
    }


def _stand_beside(
    usage: dict[str, Any], name: str | None, prompt: int, completion: int | None, total: int | None
) -> bool:
    """Are the cached tokens no part of the prompt tokens?"""
    read, written = _first(usage, *_READ_BESIDE) or 0, _first(usage, *_WRITE_BESIDE) or 0
    if not read + written:
        return False
    if read + written > prompt or name in _NAMES_BESIDE:
        return True
    return total is not None and total == prompt + (completion or 0) + read + written


#: Under these names, the cached tokens of :data:`_READ_BESIDE` are not part of the prompt tokens.
_NAMES_BESIDE = frozenset({"input_tokens", "inputTokens", "inputTokenCount"})


def _plausible_parts(whole: int, parts: dict[str, int]) -> dict[str, int]:
    """The parts that fit into the whole, in this order. One that does not fit cannot be true."""
    left = whole
    fitting: dict[str, int] = {}
    for name, count in parts.items():
        fitting[name] = count if count <= left else 0
        left -= fitting[name]
    return fitting


def _named(usage: dict[str, Any], names: tuple[str, ...]) -> tuple[str | None, int | None]:
    for name in names:
        count = _count(usage.get(name))
        if count is not None:
            return name, count
    return None, None


def _first(usage: dict[str, Any], *paths: _Path) -> int | None:
    """The first of these that is a number of tokens above 0; else 0 if one is 0, or None."""
    found: int | None = None
    for path in paths:
        count = _count(usage.get(path) if isinstance(path, str) else _at(usage, path))
        if count:
            return count
        if count is not None:
            found = count
    return found


def _at(usage: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = usage
    for name in path:
        if not isinstance(value, dict):
            return None
        value = cast("dict[str, Any]", value).get(name)
    return value


def _count(value: object) -> int | None:
    """A number of tokens, which some providers write as text or with a decimal point."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 11 else None
    elif isinstance(value, (Decimal, float)):
        whole = 0 <= value <= MAX_PLAUSIBLE_TOKENS and value == int(value)
        value = int(value) if whole else None
    if not isinstance(value, int) or not 0 <= value <= MAX_PLAUSIBLE_TOKENS:
        return None
    return value


def _charged(usage: dict[str, Any]) -> int | None:
    """What the provider charges for the call, in nano-dollars, or None.

    OpenRouter charges its fee alone if the operator has a key of their own at the model's
    provider (BYOK). That provider then charges the rest. OpenRouter fills the same field on other
    calls, too, where it is part of the cost.
    """
    cost = next((usd for name in _COST if (usd := _usd(usage.get(name))) is not None), None)
    if usage.get("is_byok") is True:
        rest = _usd(_at(usage, ("cost_details", "upstream_inference_cost")))
        return None if rest is None else _nanos((cost or Decimal(0)) + rest)
    if cost is not None:
        return _nanos(cost)
    ticks = usage.get("cost_in_usd_ticks")
    if type(ticks) is int and 0 <= ticks <= money.MAX_CAP_USD * TICKS_PER_USD:
        return _nanos(Decimal(ticks) / TICKS_PER_USD)
    return None


def _nanos(usd: Decimal) -> int | None:
    try:
        return money.nanos_ceil(money.amount(usd, most=money.MAX_CAP_USD))
    except ValueError:
        return None


def _usd(value: object) -> Decimal | None:
    """An amount in USD: a number, a number as text, or an object with the total."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if fields.get("currency") not in _USD:
            return None
        totals = (_usd(fields.get(name)) for name in _COST_TOTAL if name in fields)
        return next((total for total in totals if total is not None), None)
    if isinstance(value, str):
        try:
            value = Decimal(value.strip().removeprefix("$"))
        except InvalidOperation:
            return None
    try:
        return money.amount(value, most=money.MAX_CAP_USD)
    except ValueError:
        return None
