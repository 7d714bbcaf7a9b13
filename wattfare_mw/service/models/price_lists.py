"""What models cost: by the upstream's own list, as OpenRouter shapes it, or by a published one.

A model that the upstream lists without a price, as OpenAI lists all of its own, is looked up in
the data of the package ``genai-prices``, as it was installed; nothing is fetched. One that is
listed at -1, as a router is, has no fixed price, and none is made up for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from enum import Enum
from typing import Any, cast

import msgspec

from ... import money
from ...logs import get_logger
from ...types import exact
from ..chat.price import Price

log = get_logger("wattfare_mw.service", show_messages=False)

#: No model is this dear, in USD for a token or a request; what is, is a mistake in the list.
MAX_PRICE_USD = 1_000_000


class Unpriced(Enum):
    """Why a model in the list has no price."""

    NOT_LISTED = "the list names none"
    NOT_FIXED = "the list names one that is no price, -1 for instance"


class _Model(msgspec.Struct):
    id: str
    pricing: dict[str, Any] | None = None


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


def read_prices(body: bytes) -> dict[str, Price | Unpriced]:
    """The price of each model in the list, as far as it names one.

    Raises:
        msgspec.MsgspecError: it is no list of models.
    """
    prices: dict[str, Price | Unpriced] = {}
    for entry in msgspec.json.decode(body, type=_List).data:
        try:
            model = _decode_model(entry)
        except msgspec.ValidationError:
            continue  # one entry of a shape of its own must not hide the others
        prices[model.id] = _price(model.pricing or {})
    return prices


def published(model: str, base_url: str) -> Price | None:
    """The published price of this model at whoever is behind this URL; where that is nobody
    known, of the model that goes by this name. None where there is none.

    It reads a large table when it is first called: not for an event loop.
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
        return _of_table(calc_price(tokens, model, provider_api_url=url).model_price)
    except LookupError:
        return None
    except Exception:
        log.exception("the published price of %r cannot be read", model)
        return None


_decode_model = msgspec.json.Decoder(_Model, float_hook=exact).decode

_PROMPT = ("prompt", "input_cache_write")
_COMPLETION = ("completion", "internal_reasoning")


def _price(pricing: dict[str, Any]) -> Price | Unpriced:
    """OpenRouter's ``pricing``: amounts in USD as strings; ``overrides`` hold others, for a long
    prompt or for a time of the day, any of which may come to count."""
    if pricing.get("prompt") is None or pricing.get("completion") is None:
        return Unpriced.NOT_LISTED
    overrides: object = pricing.get("overrides") or []
    if not isinstance(overrides, list):
        return Unpriced.NOT_FIXED
    tables = [pricing]
    for override in cast("list[object]", overrides):
        if not isinstance(override, dict):
            return Unpriced.NOT_FIXED
        tables.append(cast("dict[str, Any]", override))
    try:
        return Price(
            prompt=_amount(pricing["prompt"]),
            completion=_amount(pricing["completion"]),
            request=max(_amounts(tables, ("request",)), default=Decimal(0)),
            dearest_prompt=max(_amounts(tables, _PROMPT)),
            dearest_completion=max(_amounts(tables, _COMPLETION)),
        )
    except (ValueError, ArithmeticError):
        return Unpriced.NOT_FIXED


def _amounts(tables: list[dict[str, Any]], names: Iterable[str]) -> list[Decimal]:
    given = (table.get(name) for table in tables for name in names)
    return [_amount(value) for value in given if value is not None]


def _of_table(prices: Any) -> Price | None:
    """A price of ``genai-prices``: USD for a million tokens, at times in tiers."""
    prompt, dearest_prompt = _rates(prices.input_mtok, prices.cache_write_mtok)
    completion, dearest_completion = _rates(prices.output_mtok, prices.output_reasoning_mtok)
    request, dearest_request = _rates(prices.requests_kcount)
    if prompt is None or completion is None:
        return None
    return Price(
        prompt=_amount(prompt.scaleb(-6)),
        completion=_amount(completion.scaleb(-6)),
        request=_amount(max(request or 0, dearest_request) / 1000),
        dearest_prompt=_amount(dearest_prompt.scaleb(-6)),
        dearest_completion=_amount(dearest_completion.scaleb(-6)),
    )


def _rates(first: Any, *others: Any) -> tuple[Decimal | None, Decimal]:
    """The rate that counts at first, and the dearest of all."""
    base = getattr(first, "base", first)
    rates: list[Decimal] = [Decimal(0)]
    for price in (first, *others):
        if price is not None:
            rates.append(getattr(price, "base", price))
            rates.extend(tier.price for tier in getattr(price, "tiers", ()))
    return base, max(rates)


def _amount(value: object) -> Decimal:
    """A price, which comes as a string of a decimal number, mostly.

    Raises:
        ValueError, ArithmeticError: it is none.
    """
    number = Decimal(value) if isinstance(value, str) else value
    return money.amount(number, most=MAX_PRICE_USD)
