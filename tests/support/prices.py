"""Generated prices and counts, and an independent version of a provider's arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, time
from decimal import Decimal
from fractions import Fraction

from hypothesis import strategies as st

from wattfare_mw.service.chat.price import Override, Price, Rates
from wattfare_mw.service.chat.usage import COMPLETION_PARTS, PROMPT_PARTS, TokenCounts

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)

rates = st.decimals(0, 100, places=15) | st.just(Decimal("1E-70")) | st.just(Decimal(0))
#: Rates at which a few tokens cost a few nano-dollars.
small_rates = st.integers(0, 30).map(lambda tenths: Decimal(tenths).scaleb(-10))
_NAMES = Rates.__struct_fields__
_windows = st.none() | st.tuples(st.times(), st.times())
discounts = st.just(Decimal(0)) | st.decimals(0, 1, places=3)


def _prices(rate: st.SearchStrategy[Decimal], long: int) -> st.SearchStrategy[Price]:
    """Prices with rates of any kind, some only for prompts above or below a length."""
    optional = {name: rate for name in _NAMES if name not in ("prompt", "completion")}
    base = st.fixed_dictionaries({"prompt": rate, "completion": rate}, optional=optional)
    some = st.fixed_dictionaries({}, optional=dict.fromkeys(_NAMES, rate))
    overrides = st.builds(
        Override,
        rates=some.map(lambda given: Rates(**given)),
        min_prompt=st.integers(0, long),
        window=_windows,
    )
    return st.builds(
        Price,
        base.map(lambda given: Rates(**given)),
        st.lists(overrides, max_size=3).map(tuple),
        discounts,
    )


prices = _prices(rates, 1000)
small_prices = _prices(small_rates, 10)
flat_prices = st.builds(Price.flat, rates, rates, rates)


@st.composite
def token_counts(draw: st.DrawFn, most: int = 2000) -> TokenCounts:
    """Counts whose parts fit into their totals."""
    fields: dict[str, int] = {}
    for whole, parts in (("prompt", PROMPT_PARTS), ("completion", COMPLETION_PARTS)):
        given = {name: draw(st.integers(0, most // 10)) for name in parts}
        fields |= given | {whole: sum(given.values()) + draw(st.integers(0, most // 2))}
    return TokenCounts(**fields)


_OTHERWISE = {
    "cache_read": ("prompt",),
    "cache_write": ("prompt",),
    "cache_write_1h": ("cache_write", "prompt"),
    "audio": ("prompt",),
    "audio_cache_read": ("cache_read", "prompt"),
    "image": ("prompt",),
    **dict.fromkeys(COMPLETION_PARTS, ("completion",)),
}


def provider_cost(price: Price, used: TokenCounts, moment: datetime = NOON) -> Fraction:
    """What a provider charges for this by its own list, in nano-dollars."""
    rate = {name: getattr(price.rates, name) for name in _NAMES}
    for override in price.overrides:
        window = override.window or (time(0), time(0))
        start, end = window
        now = moment.time()
        inside = override.window is None or (
            start <= now < end if start <= end else not end <= now < start
        )
        if used.prompt >= override.min_prompt and inside:
            changed = {name: getattr(override.rates, name) for name in _NAMES}
            rate |= {name: value for name, value in changed.items() if value is not None}

    def of(name: str) -> Fraction:
        given = (rate[each] for each in (name, *_OTHERWISE.get(name, ())))
        return Fraction(next((value for value in given if value is not None), 0))

    text = used.prompt - sum(getattr(used, name) for name in PROMPT_PARTS)
    text_tokens = used.completion - sum(getattr(used, name) for name in COMPLETION_PARTS)
    usd = text * of("prompt") + text_tokens * of("completion")
    usd += sum(getattr(used, name) * of(name) for name in PROMPT_PARTS + COMPLETION_PARTS)
    usd += of("request") + used.searches * of("search")
    usd += used.images * of("per_image")
    return usd * (1 - Fraction(price.discount)) * 10**9


def in_openai_names(used: TokenCounts) -> dict[str, object]:
    """These counts as OpenAI and OpenRouter report them."""
    return {
        "prompt_tokens": used.prompt,
        "completion_tokens": used.completion,
        "total_tokens": used.prompt + used.completion,
        "prompt_tokens_details": {
            "cached_tokens": used.cache_read + used.audio_cache_read,
            "cached_tokens_details": {"audio_tokens": used.audio_cache_read},
            "cache_write_tokens": used.cache_write + used.cache_write_1h,
            "audio_tokens": used.audio + used.audio_cache_read,
            "image_tokens": used.image,
        },
        "cache_creation": {"ephemeral_1h_input_tokens": used.cache_write_1h},
        "completion_tokens_details": {
            "reasoning_tokens": used.reasoning,
            "audio_tokens": used.audio_output,
            "image_tokens": used.image_output,
        },
        "server_tool_use": {"web_search_requests": used.searches},
    }
