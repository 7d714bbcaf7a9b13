"""The maximum output of models, and the names of the token limit. No I/O.

The service adds a token limit to each call that does not set one. A model refuses a limit above its
own maximum. This maximum comes from the upstream's list or, if the list does not have it, from the
table in this module. If the maximum is wrong, the upstream refuses the call, and the service reads
the correct maximum from the refusal: see :mod:`.limit_refusals`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec

from ...types import exact
from ..chat.request import FLOOR_TOKENS, MAX_TOKENS
from . import model_lists, thinking
from .provider_facts import LimitName, ProviderFacts

V = TypeVar("V")

#: How many models with a refused limit are remembered.
MAX_REMEMBERED = 1000


class ModelLimits(msgspec.Struct, frozen=True):
    """The limits of a model, in tokens; None if not known.

    Attributes:
        output: the maximum number of tokens in an answer.
        context: the maximum number of tokens in the prompt and the answer together.
    """

    output: int | None = None
    context: int | None = None

    @classmethod
    def of_all(cls, each: Sequence[ModelLimits]) -> ModelLimits:
        """The lowest limits of these models."""
        return cls(
            min((one.output for one in each if one.output is not None), default=None),
            min((one.context for one in each if one.context is not None), default=None),
        )

    def fit(self, default: int, prompt_bound: int, prompt_estimate: int) -> int:
        """The limit for a call that does not set one, in tokens.

        Args:
            default: the operator's default limit.
            prompt_bound: the maximum number of tokens in the prompt. Usually, the prompt has far
                fewer.
            prompt_estimate: the estimated number of tokens in the prompt.
        """
        limit = default if self.output is None else min(default, self.output)
        if self.context is None or prompt_bound + limit <= self.context:
            return limit
        # Use only half of the space that the estimate leaves, because the estimate may be too low.
        for_certain = self.context - prompt_bound
        likely = (self.context - prompt_estimate) // 2
        return min(limit, max(for_certain, likely, FLOOR_TOKENS))


UNKNOWN = ModelLimits()

#: The field names of the maximum output in lists. OpenRouter: `top_provider.max_completion_tokens`.
#: LiteLLM: `model_info` with `max_output_tokens`, or `max_tokens`, which means the same there and
#: in Anthropic's list. Groq: `max_completion_tokens`. Google: `outputTokenLimit`. GitHub:
#: `limits.max_output_tokens`.
_OUTPUT = (
    "max_completion_tokens",
    "max_output_tokens",
    "outputTokenLimit",
    "output_token_limit",
    "max_output_length",
    "max_tokens",
)
#: The field names of the context. OpenRouter, Together, Fireworks: `context_length`. Groq:
#: `context_window`. vLLM: `max_model_len`. Mistral, LM Studio: `max_context_length`.
_CONTEXT = (
    "context_length",
    "context_window",
    "max_model_len",
    "max_context_length",
    "max_context_window_tokens",
)
#: The objects inside a model's entry that may have these fields.
_INSIDE = ("top_provider", "model_info", "limits", "metadata", "capabilities")


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


_decode_entry = msgspec.json.Decoder(dict[str, Any], float_hook=exact).decode


def read_limits(body: bytes) -> dict[str, ModelLimits]:
    """The limits of each model in a normalized list, as far as the list has them."""
    found: dict[str, ModelLimits] = {}
    for raw in msgspec.json.decode(body, type=_List).data:
        try:
            entry = _decode_entry(raw)
        except msgspec.ValidationError:
            continue
        model = entry.get("id")
        limits = ModelLimits(_least(entry, _OUTPUT), _least(entry, _CONTEXT))
        if isinstance(model, str) and limits != UNKNOWN:
            found[model] = limits
    return found


def _least(entry: Mapping[str, Any], names: tuple[str, ...], depth: int = 2) -> int | None:
    """The smallest value of these fields, because each provider of a model may have its own
    limit."""
    numbers = [number for name in names if (number := _tokens(entry.get(name))) is not None]
    for name in _INSIDE if depth else ():
        inner = entry.get(name)
        if isinstance(inner, dict):
            number = _least(cast("dict[str, Any]", inner), names, depth - 1)
            numbers += [] if number is None else [number]
    return min(numbers, default=None)


def _tokens(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:9])
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    whole = type(value) is int and FLOOR_TOKENS <= value <= MAX_TOKENS
    return cast("int", value) if whole else None


#: The maximum output of models whose vendors do not list it. The first matching row counts. Models
#: with open weights are not in this table, because each host sets its own maximum. Sources: the
#: page of each model in OpenAI's documentation (platform.openai.com/docs/models, "max output
#: tokens"); Anthropic's "Models overview" (docs.anthropic.com/en/docs/about-claude/models);
#: Google's "Gemini models" (ai.google.dev/gemini-api/docs/models, "output token limit"); Cohere's
#: "Models" (docs.cohere.com/docs/models); "Amazon Nova models" of Amazon Bedrock; DeepSeek's
#: "Models & Pricing" (api-docs.deepseek.com); "Models" of Alibaba Model Studio.
_TABLE: tuple[tuple[re.Pattern[str], ModelLimits], ...] = tuple(
    (re.compile(pattern), ModelLimits(output, context))
    for pattern, output, context in (
        (r"gpt-3\.?5-turbo-(?:instruct|0613|0301)", 4096, 4096),  # Azure writes gpt-35-turbo
        (r"gpt-3\.?5-turbo", 4096, 16_385),
        (r"gpt-4-32k", 8192, 32_768),
        (r"gpt-4-(?:turbo|1106|0125|vision)", 4096, 128_000),
        (r"gpt-4(?:-0314|-0613)?$", 8192, 8192),
        (r"gpt-4o-2024-05-13", 4096, 128_000),
        (r"(?:chatgpt-|gpt-)4o", 16_384, 128_000),
        (r"gpt-4\.1", 32_768, 1_047_576),
        (r"gpt-4\.5", 16_384, 128_000),
        (r"gpt-5(?:\.\d)?-chat", 16_384, 128_000),
        (r"gpt-5", 128_000, 400_000),
        (r"o1-preview", 32_768, 128_000),
        (r"o1-mini", 65_536, 128_000),
        (r"o[134](?:-|$)", 100_000, 200_000),
        (r"claude-(?:instant|v?[12](?:\.|$|-))", 4096, 100_000),
        (r"claude-3[.-]5", 8192, 200_000),
        (r"claude-3[.-]7", 64_000, 200_000),
        (r"claude-3", 4096, 200_000),
        (r"claude-opus-4(?:[.-][01]$|[.-][01]-|-2025|$)|claude-4-opus", 32_000, 200_000),
        (r"claude-(?:sonnet|haiku|opus)-", 64_000, None),
        (r"gemini-(?:pro|1\.0)", 2048, 32_768),
        (r"gemini-(?:1\.5|2\.0)", 8192, None),
        (r"gemini-2\.5-flash-image", 32_768, 65_536),
        (r"gemini-2\.5", 65_535, None),
        (r"command-a", 8192, 256_000),
        (r"command", 4096, 128_000),
        (r"(?:amazon\.)?nova-(?:pro|lite|micro)", 10_000, None),
        (r"deepseek-chat", 8192, None),
        (r"qwen-(?:max|plus|turbo)", 8192, None),
    )
)
#: Prefixes that clouds and gateways write before the name of a model:
#: `us.anthropic.claude-3-haiku-…`.
_VENDOR = re.compile(r"^(?:(?:us|eu|apac|global|ap|jp|au)\.)?(?:anthropic|meta|cohere|ai21)\.")


@lru_cache(maxsize=MAX_REMEMBERED)
def known(model: str) -> ModelLimits:
    """The limits in our own table; empty if the model is not in it."""
    name = _bare_name(model)
    return next((limits for pattern, limits in _TABLE if pattern.match(name)), UNKNOWN)


@lru_cache(maxsize=MAX_REMEMBERED)
def _bare_name(model: str) -> str:
    """The name without the vendor, the cloud and the variant: `gpt-4` for `openai/gpt-4:nitro`."""
    name = model_lists.bare(model).rpartition("/")[2].lower()
    return _VENDOR.sub("", name).partition("@")[0].split(":")[0]


#: OpenAI's reasoning models. They refuse `max_tokens`: "use 'max_completion_tokens' instead".
_REASONS = re.compile(r"o[1-9](?:$|-)|gpt-[5-9](?:$|[.-])|codex-")
#: Upstreams that may pass a limit on to OpenAI under the same name.
_HAND_ON = frozenset({"openai", "azure", "litellm", "other"})


@lru_cache(maxsize=MAX_REMEMBERED)
def _reasons(model: str) -> bool:
    return _REASONS.match(_bare_name(model)) is not None


def names_for(
    model: str, given: tuple[str, ...], provider: ProviderFacts, learned: LimitName | None
) -> tuple[str, ...]:
    """The names under which the limit of a call is sent to the upstream.

    Args:
        given: the names that the client has used.
        learned: the name that this model accepts, if the upstream has refused the other one before.
    """
    if learned is not None:
        return (learned,)
    if provider.one_limit_name:
        return (provider.limit_name,)
    if provider.thinks_beyond_limit:
        return ("max_completion_tokens" if thinking.is_limited(model) else "max_tokens",)
    if provider.name in _HAND_ON and _reasons(model):
        return ("max_completion_tokens",)
    return given or (provider.limit_name,)


def may_be_renamed(model: str, provider: ProviderFacts) -> bool:
    """True if a refused limit may be sent again with the other name. False if the provider may
    ignore the other name, or if the other name does not limit thinking."""
    if provider.thinks_beyond_limit:
        return not thinking.is_limited(model)
    return not provider.one_limit_name


class LearnedLimits:
    """The facts about each model that an upstream's refusals have shown. Only the latest models are
    kept."""

    def __init__(self) -> None:
        self._names: dict[str, LimitName] = {}
        # The maximum of a stream can be higher, as at Fireworks.
        self._most: dict[tuple[str, bool], int] = {}
        self._without_usage: dict[str, bool] = {}

    def name(self, model: str) -> LimitName | None:
        """The name that this model accepts, if the upstream has refused the other."""
        return self._names.get(model)

    def most(self, model: str, *, stream: bool) -> int | None:
        """The maximum for this model that the upstream gave in a refusal, in tokens; None if it
        gave none."""
        return self._most.get((model, stream))

    def gives_usage(self, model: str) -> bool:
        """False if the upstream has refused the field that asks for the usage of a stream."""
        return model not in self._without_usage

    def note_without_usage(self, model: str) -> None:
        """Remember that this model has accepted a call without the field for the usage."""
        _remember(self._without_usage, model, True)

    def note_name(self, model: str, name: LimitName) -> None:
        """Remember that this model has accepted its limit under this name."""
        _remember(self._names, model, name)

    def note_most(self, model: str, most: int, *, stream: bool) -> None:
        """Remember that this model has accepted this limit after it refused a higher one."""
        _remember(self._most, (model, stream), most)


def _remember(kept: dict[Any, V], key: Any, value: V) -> None:
    kept.pop(key, None)
    while len(kept) >= MAX_REMEMBERED:
        del kept[next(iter(kept))]
    kept[key] = value
