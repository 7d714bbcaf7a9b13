"""Prices of models, from the upstream's own list in OpenRouter's shape, or from a published list.

A model that the upstream lists without a price, as OpenAI does, is looked up in the installed
package ``genai-prices``. Nothing is downloaded. A model that is listed at -1, such as a router, has
no fixed price.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, cast

import msgspec

from ... import money
from ...logs import get_logger
from ...types import exact
from ..chat.price import EXPENSIVE_TIERS, Override, Price, Rates
from ..chat.usage import is_usd

log = get_logger("wattfare_mw.service", show_messages=False)

#: A price above this is a mistake in the list, in USD for a token or a request.
MAX_PRICE_USD = 1_000_000


class Unpriced(Enum):
    """Why a model in the list has no price."""

    NOT_LISTED = "the list names none"
    NOT_FIXED = "the list has an invalid one, such as -1"


class _Model(msgspec.Struct):
    id: str
    pricing: Any = None


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


def read_prices(body: bytes) -> dict[str, Price | Unpriced]:
    """The price of each model in the list, or the reason why the model has no price.

    Raises:
        msgspec.MsgspecError: it is not a list of models.
    """
    prices: dict[str, Price | Unpriced] = {}
    for entry in msgspec.json.decode(body, type=_List).data:
        try:
            model = _decode_model(entry)
        except msgspec.ValidationError:
            continue  # one invalid entry must not hide the others
        price, other = _price(model.pricing), prices.get(model.id)
        if isinstance(price, Price) and isinstance(other, Price) and price != other:
            price = Unpriced.NOT_FIXED  # any of them may apply
        prices[model.id] = price
    return prices


def published(model: str, base_url: str) -> Price | None:
    """The published price of this model at the provider behind this URL. For an unknown provider,
    the price of any model of this name. None if there is none.

    A price can change at a given date, so do not keep the result forever. The first call reads a
    large table, so do not call it on an event loop.
    """
    from genai_prices import Usage, calc_price
    from genai_prices.data_snapshot import get_snapshot

    url: str | None = base_url
    try:
        get_snapshot().find_provider(None, None, base_url)
    except LookupError:
        url = None
    tokens = Usage(input_tokens=1, output_tokens=1)
    try:
        return _of_model(calc_price(tokens, model, provider_api_url=url).model)
    except LookupError:
        return None
    except Exception:
        log.exception("the published price of %r cannot be read", model)
        return None


_decode_model = msgspec.json.Decoder(_Model, float_hook=exact).decode

#: OpenRouter's names of the rates.
_NAMES = {
    "prompt": "prompt",
    "completion": "completion",
    "input_cache_read": "cache_read",
    "input_cache_write": "cache_write",
    "input_cache_write_1h": "cache_write_1h",
    # Synthetic's.
    "input_cache_reads": "cache_read",
    "input_cache_writes": "cache_write",
    "audio": "audio",
    "input_audio_cache": "audio_cache_read",
    "image_token": "image",
    "internal_reasoning": "reasoning",
    "audio_output": "audio_output",
    "image_output": "image_output",
    "request": "request",
    "web_search": "search",
    # "Fixed cost per image input", beside its tokens: openrouter.ai/docs/api-reference/models.
    "image": "per_image",
}
#: The rates that are not for tokens.
_FEES = frozenset({"request", "web_search", "image"})
#: The units of a price, as powers of ten, if a list names one: "per_1M_tokens", "1M tokens", ….
_UNITS = {
    "token": 0,
    "1k": -3,
    "1m": -6,
    "million": -6,
}
_UNIT = re.compile(r"(?:per)?[ _-]*(token|1k|1m|million)(?:[ _-]*tokens?)?", re.IGNORECASE)
#: No token costs this much, in USD. Some lists have prices for a million tokens and do not say so:
#: NousResearch/hermes-agent#79400. The smallest models cost less than a cent for a million.
MOST_FOR_A_TOKEN = Decimal("0.002")
#: The fields of a price that are not rates.
_CURRENCIES = ("currency", "currency_unit")
_NOT_RATES = frozenset({"overrides", "discount", "unit", *_CURRENCIES})
#: Conditions of an override.
_CONDITIONS = frozenset({"min_prompt_tokens", "utc_start", "utc_end"})


def _price(listed: object) -> Price | Unpriced:
    """OpenRouter's ``pricing``: amounts in USD as strings. ``overrides`` have other amounts, for
    a long prompt or for a time of the day."""
    if not isinstance(listed, dict):
        return Unpriced.NOT_FIXED if listed else Unpriced.NOT_LISTED
    pricing = cast("dict[str, Any]", listed)
    if pricing.get("prompt") is None or pricing.get("completion") is None:
        # A fee for each message replaces the published price of the tokens, as at Poe.
        return Unpriced.NOT_FIXED if _has_fee(pricing) else Unpriced.NOT_LISTED
    try:
        overrides: object = pricing.get("overrides") or []
        if not isinstance(overrides, list):
            raise ValueError("overrides must be a list")
        discount = _amount(pricing.get("discount") or 0)
        if discount > 1:
            raise ValueError("a discount must not exceed the price")
        if not all(is_usd(pricing.get(name)) for name in _CURRENCIES):
            raise ValueError("the prices are not in USD")
        places = _unit(pricing)
        return Price(
            _rates(pricing, _NOT_RATES, places),
            tuple(_override(each, places) for each in cast("list[object]", overrides)),
            discount,
        )
    except (ValueError, ArithmeticError):
        return Unpriced.NOT_FIXED


def _has_fee(pricing: dict[str, Any]) -> bool:
    try:
        return bool(_amount(pricing.get("request") or 0))
    except (ValueError, ArithmeticError):
        return True


def _unit(pricing: dict[str, Any]) -> int:
    """The unit of the prices of tokens, as a power of ten.

    Raises:
        ValueError, ArithmeticError: the unit is unknown.
    """
    unit = pricing.get("unit")
    if unit is not None:
        named = _UNIT.fullmatch(unit) if isinstance(unit, str) else None
        if named is None:
            raise ValueError("the unit is not known")
        return _UNITS[named[1].lower()]
    both = sorted((_amount(pricing["prompt"]), _amount(pricing["completion"])))
    if both[1] < MOST_FOR_A_TOKEN:
        return 0
    if 0 < both[0] < MOST_FOR_A_TOKEN.scaleb(-2):
        raise ValueError("the two prices have different units")
    return -6


def _rates(pricing: dict[str, Any], others: frozenset[str], places: int) -> Rates:
    """The rates of a table.

    Args:
        others: names of fields that are not rates.
        places: the unit of the prices of tokens, as a power of ten.

    Raises:
        ValueError, ArithmeticError: a rate is not a valid price, or an unknown rate is not zero.
    """
    rates: dict[str, Decimal] = {}
    for name, value in pricing.items():
        if value is None or name in others or (name not in _NAMES and not value):
            continue
        amount = _amount(value)
        if name not in _FEES:
            amount = amount.scaleb(places)
        if name in _NAMES:
            # Zero for a part of the prompt or the answer means that it has no separate rate.
            if amount or name in ("prompt", "completion"):
                rates[_NAMES[name]] = amount
        elif amount:
            raise ValueError(f"{name} is not known")
    return Rates(**rates)


def _override(override: object, places: int) -> Override:
    if not isinstance(override, dict):
        raise ValueError("an override must be an object")
    fields = cast("dict[str, Any]", override)
    least = fields.get("min_prompt_tokens") or 0
    if not isinstance(least, (int, Decimal)):
        raise ValueError("`min_prompt_tokens` must be a number")
    start, end = fields.get("utc_start"), fields.get("utc_end")
    window = None if start is None and end is None else (_time(start), _time(end))
    return Override(
        rates=_rates(fields, _CONDITIONS, places), min_prompt=int(_amount(least)), window=window
    )


def _time(value: object) -> time:
    """A time of the day, as ``16:30`` or ``1630``; midnight if it is missing."""
    if value is None:
        return time()
    if not isinstance(value, str):
        raise ValueError("a time of the day must be text")
    return time.fromisoformat(value.removesuffix("Z"))


#: The names of the rates in ``genai-prices``, in USD for a million tokens, and for 1,000 requests.
_TABLE_NAMES = {
    "input_mtok": "prompt",
    "output_mtok": "completion",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "audio",
    "cache_audio_read_mtok": "audio_cache_read",
    "input_image_mtok": "image",
    "output_reasoning_mtok": "reasoning",
    "output_audio_mtok": "audio_output",
    "output_image_mtok": "image_output",
    "requests_kcount": "request",
    "web_searches_kcount": "search",
}
#: Rates that the service ignores: it does not count the tokens of videos and cached images
#: separately, it refuses stored files, and it bills a document in a chat by its tokens.
_TABLE_CANNOT_COUNT = frozenset(
    {
        "cache_image_read_mtok",
        "input_video_mtok",
        "output_video_mtok",
        "input_document_kpages",
        "input_annotated_document_kpages",
        "storage_searches_kcount",
    }
)


#: The service tiers that a call can request, besides the default.
_TIERS = frozenset({"flex", *EXPENSIVE_TIERS})


def _of_model(model: Any) -> Price | None:
    """A model's price in ``genai-prices``, with overrides for times of the day and for service
    tiers."""
    now = datetime.now(UTC)
    price = _of_all_times(model.prices, now)
    for variant in model.price_variants or ():
        tier = variant.when.get("service_tier")
        if price is None or tier not in _TIERS or len(variant.when) > 1:
            continue
        if variant.constraint is None or variant.constraint.active(now):
            changed = _of_table(variant.prices)
            price = price if changed is None else _within(price, changed, tier=tier)
    return price


def _of_all_times(prices: Any, now: datetime) -> Price | None:
    """Convert one price, or a list of prices with conditions. The last price that applies counts. A
    condition is a start date or, as at DeepSeek, a time of the day."""
    if not isinstance(prices, list):
        return _of_table(prices)
    price: Price | None = None
    for conditional in cast("list[Any]", prices):
        condition, given = conditional.constraint, _of_table(conditional.prices)
        start, end = getattr(condition, "start_time", None), getattr(condition, "end_time", None)
        if start is None or end is None:
            if condition is None or condition.active(now):
                price = given
            continue
        if price is None or given is None:
            return None
        price = _within(price, given, window=(_in_utc(start), _in_utc(end)))
    return price


def _within(price: Price, changed: Price, **condition: Any) -> Price:
    """The price, with ``changed`` as an override that applies under this condition."""
    changes = (Override(rates=changed.rates), *changed.overrides)
    conditional = (msgspec.structs.replace(each, **condition) for each in changes)
    return Price(price.rates, (*price.overrides, *conditional))


def _in_utc(moment: time) -> time:
    today = datetime.now(UTC).date()
    return datetime.combine(today, moment, moment.tzinfo or UTC).astimezone(UTC).time()


def _of_table(prices: Any) -> Price | None:
    """Convert a price of ``genai-prices``. Some of its rates have tiers for long prompts."""
    base: dict[str, Decimal] = {}
    tiers: dict[int, dict[str, Decimal]] = {}
    for name, value in cast("dict[str, Any]", vars(prices)).items():
        if value is None or name.startswith("_") or name in _TABLE_CANNOT_COUNT:
            continue
        first = getattr(value, "base", value)
        steps = getattr(value, "tiers", ())
        if name not in _TABLE_NAMES:
            if first or any(step.price for step in steps):
                return None
            continue
        places = -3 if name.endswith("_kcount") else -6
        base[_TABLE_NAMES[name]] = _amount(first.scaleb(places))
        for step in steps:
            # A tier is for prompts that are longer than its start.
            at = tiers.setdefault(step.start + 1, {})
            at[_TABLE_NAMES[name]] = _amount(step.price.scaleb(places))
    if "prompt" not in base or "completion" not in base:
        return None
    overrides = (
        Override(rates=Rates(**rates), min_prompt=least) for least, rates in sorted(tiers.items())
    )
    return Price(Rates(**base), tuple(overrides))


def _amount(value: object) -> Decimal:
    """A price, usually a decimal number as a string.

    Raises:
        ValueError, ArithmeticError: it is not a price.
    """
    number = Decimal(value.removeprefix("$")) if isinstance(value, str) else value
    return money.amount(number, most=MAX_PRICE_USD)
