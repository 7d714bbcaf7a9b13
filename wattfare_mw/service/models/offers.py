"""The models that may answer a call, and the highest cost with each of them. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

import msgspec

from ... import money
from ..chat import prompt_bound, tokenizer
from ..chat.allowed_fields import max_price_of
from ..chat.attachments import Attachments
from ..chat.families import Family
from ..chat.price import Price
from ..chat.request import ChatRequest
from ..chat.usage import TokenCounts
from ..records import Bounds
from . import variants
from .output_limits import UNKNOWN, ModelLimits
from .variants import Variant


class Offer(msgspec.Struct, frozen=True):
    """A model that may answer.

    Attributes:
        price: the price. None if only the upstream can report the cost.
        variant: the parsed name.
        family: the family, which has the token counts of images, files and audio.
        limits: the token limits, if a list or our table has them.
        unbounded: True if the tokens of a request do not bound the cost.
    """

    price: Price | None
    variant: Variant
    family: Family
    limits: ModelLimits = UNKNOWN
    unbounded: bool = False


class Bound(msgspec.Struct, frozen=True):
    """The highest cost of a call if this model answers.

    Attributes:
        prompt: the maximum tokens of the prompt.
        fees: costs other than the prompt and an answer within its limit, in nano-dollars.
    """

    price: Price
    prompt: TokenCounts
    fees: int

    def cost(self, completion: int) -> int:
        """The highest cost with an answer of this many tokens, in nano-dollars."""
        return self.price.bound(self.prompt, completion) + self.fees

    def limit(self, granted: int, answers: int, most: int) -> int:
        """The limit, up to ``most``, that this amount pays for in each of the answers."""
        return self.price.pays_for(granted - self.fees, self.prompt, answers, most)


def counted(offers: Sequence[Offer], request: ChatRequest, text: int) -> list[int] | None:
    """The tokens of the prompt without attachments, counted by the tokenizer of each model; None if
    no model's tokenizer is installed. It can take long, so do not call it on an event loop.

    Args:
        text: the bound for a model whose tokenizer is not installed.
    """
    encodings = [tokenizer.encoding_of(offer.variant.base) for offer in offers]
    found = {
        encoding: min(tokenizer.tokens(encoding, request.body, request.text), text)
        for encoding in encodings
        if encoding is not None
    }
    if not found:
        return None
    return [text if encoding is None else found[encoding] for encoding in encodings]


def bounds(
    offers: Sequence[Offer],
    texts: Sequence[int],
    attached: Attachments | None = None,
    page_usd: Decimal = Decimal(0),
    beyond: int = 0,
) -> list[Bound]:
    """The bound for each model; empty if one of them has no price.

    Args:
        texts: the maximum tokens of the prompt for each model, without attachments.
        page_usd: the most that the provider charges for a page of a PDF, in USD.
        beyond: the maximum tokens of the answers beyond their limit.
    """
    found: list[Bound] = []
    media: dict[int, TokenCounts] = {}  # of each family
    for offer, text in zip(offers, texts, strict=True):
        if offer.price is None:
            return []
        searches = offer.variant.searches
        more = searches * variants.SEARCH_TOKENS
        prompt = TokenCounts(prompt=text + more)
        if attached is not None:
            family = id(offer.family)
            if family not in media:
                media[family] = prompt_bound.counts(0, attached, offer.family)
            counts = media[family]
            prompt = msgspec.structs.replace(counts, prompt=text + more + counts.prompt)
        fees = _fees(offer, prompt, attached, page_usd) if searches or attached else 0
        if beyond:
            rates = offer.price.most_per_unit(prompt.prompt)
            fees += money.nanos_ceil((rates.completion or Decimal(0)) * beyond)
        found.append(Bound(offer.price, prompt, fees))
    return found


def _fees(
    offer: Offer, prompt: TokenCounts, attached: Attachments | None, page_usd: Decimal
) -> int:
    pages = sum(len(each.text) for each in attached.pages) if attached is not None else 0
    usd = page_usd * pages
    if offer.variant.searches and offer.price is not None:
        listed = offer.price.most_per_unit(prompt.prompt).search or Decimal(0)
        usd += offer.variant.searches * max(listed, variants.SEARCH_USD)
    return money.nanos_ceil(usd)


def between(found: Sequence[Bound], least: int, most: int) -> Bounds:
    """The cost of the most expensive model, with the fewest and the most tokens of the answer."""
    low = high = 0
    for each in found:
        at_least, at_most = each.price.bounds(each.prompt, least, most)
        at_least += each.fees
        at_most += each.fees
        # Not `max`: its function call takes longer than this loop.
        low = at_least if at_least > low else low
        high = at_most if at_most > high else high
    return Bounds(low, high)


def longest(found: Sequence[Bound]) -> int:
    """The maximum tokens of the prompt with any of these models."""
    if len(found) == 1:
        return found[0].prompt.prompt
    return max(each.prompt.prompt for each in found)


def most_expensive(found: Sequence[Bound], most: int) -> Price | None:
    """The price of the most expensive model, with this many tokens of the answer."""
    if len(found) == 1:
        return found[0].price
    return max(found, key=lambda each: each.cost(most)).price if found else None


def limit(found: Sequence[Bound], granted: int, answers: int, most: int) -> int:
    """The limit, up to ``most``, that this amount pays for with any of these models."""
    return min([each.limit(granted, answers, most) for each in found])


def max_price(
    found: Sequence[Bound], asked: Mapping[str, object] | None = None
) -> dict[str, float]:
    """OpenRouter's ``max_price``: any provider that it routes to costs no more than this.

    Args:
        asked: the client's own prices. A lower one counts.
    """
    rates = [each.price.most_per_unit(each.prompt.prompt) for each in found]

    def most(name: str) -> Decimal:
        return max(getattr(each, name) for each in rates)

    prices = {
        "prompt": most("prompt").scaleb(6),
        "completion": most("completion").scaleb(6),
        "request": most("request"),
    }
    if any(each.prompt.images for each in found):
        prices["image"] = most("per_image")
    reserved = {name: float(price) for name, price in prices.items()}
    prices_asked = ((name, max_price_of(value)) for name, value in (asked or {}).items())
    lower = {name: price for name, price in prices_asked if price is not None}
    return {
        **lower,
        **{name: min(price, lower.get(name, price)) for name, price in reserved.items()},
    }
