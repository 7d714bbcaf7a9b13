"""The prices in a list of models as OpenRouter shapes it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from .. import money
from .metering import Price

#: No model is this dear, in USD for a token or a request; what is, is a mistake in the list.
MAX_PRICE_USD = 1_000_000


class _Model(msgspec.Struct):
    id: str
    pricing: dict[str, Any] | None = None


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


def read_prices(body: bytes) -> dict[str, Price | None]:
    """The price of each model in the list; None for one whose price is not known: it names none,
    or -1, as a router does.

    Raises:
        msgspec.MsgspecError: it is no list of models.
    """
    prices: dict[str, Price | None] = {}
    for entry in msgspec.json.decode(body, type=_List).data:
        try:
            model = _decode_model(entry)
        except msgspec.ValidationError:
            continue  # one entry of a shape of its own must not hide the others
        prices[model.id] = _price(model.pricing or {})
    return prices


_decode_model = msgspec.json.Decoder(_Model, float_hook=Decimal).decode


def _price(pricing: dict[str, Any]) -> Price | None:
    prompt, completion = _amount(pricing.get("prompt")), _amount(pricing.get("completion"))
    request = _amount(pricing.get("request", "0"))
    if prompt is None or completion is None or request is None:
        return None
    return Price(
        prompt=prompt,
        completion=completion,
        request=request,
        dearest_prompt=_amount(pricing.get("input_cache_write")),
        dearest_completion=_amount(pricing.get("internal_reasoning")),
    )


def _amount(value: object) -> Decimal | None:
    """A price, which comes as a string of a decimal number; None where it is none."""
    try:
        number = Decimal(value) if isinstance(value, str) else value
        return money.amount(number, most=MAX_PRICE_USD)
    except (ValueError, ArithmeticError):
        return None
