"""The prices that the operator sets, with ``--price`` or in the table ``[prices]`` of a file."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from decimal import Decimal

import msgspec

from ...errors import invalid_request
from ...types import MAX_MODEL_CHARACTERS
from ..chat.price import Price, Rates

#: The pattern of the default price.
DEFAULT = "*"
FORM = (
    "MODEL=IN/OUT or MODEL=IN/OUT/CACHED, in USD per million tokens, such as 'llama3.2=0.10/0.40'"
)
#: USD for a million tokens. A price above this is a mistake.
MAX_PER_MILLION = 1_000_000

_AMOUNT = r"([0-9]{1,10}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})"
_PRICE = re.compile(rf"{_AMOUNT}/{_AMOUNT}(?:/{_AMOUNT})?")
_WILD = re.compile(r"[*?\[]")


class OwnPrice(msgspec.Struct, frozen=True):
    """One price, in USD per million tokens. ``cached`` is for tokens that the upstream reads from
    its cache; None means the price of other input."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None

    def price(self) -> Price:
        """The same, as a :class:`.price.Price`."""
        cached = None if self.cached is None else self.cached.scaleb(-6)
        prompt, completion = self.input.scaleb(-6), self.output.scaleb(-6)
        return Price(Rates(prompt=prompt, completion=completion, cache_read=cached))


def read_price(model: str, text: str) -> OwnPrice:
    """Parse a price such as ``0.10/0.40`` or ``1/2/0.1``.

    Raises:
        WattfareError: ``invalid_request``; the text is not a valid price. The message shows the
            format.
    """
    found = _PRICE.fullmatch(text)
    amounts = [] if found is None else [Decimal(each) for each in found.groups() if each]
    named = 0 < len(model) <= MAX_MODEL_CHARACTERS
    if not amounts or not named or max(amounts) > MAX_PER_MILLION:
        raise invalid_request(f"The price {f'{model}={text}'!r:.200} is invalid. Write {FORM}.")
    return OwnPrice(*amounts)


class OwnPrices:
    """The operator's prices.

    Args:
        prices: the price of each model, or of each pattern such as ``qwen*``, as ``IN/OUT`` or
            ``IN/OUT/CACHED``.

    Attributes:
        default: the price under ``*``, for models that have no other; None if there is none.

    Raises:
        WattfareError: ``invalid_request``; one of them is not a price.
    """

    def __init__(self, prices: Mapping[str, str] | None = None) -> None:
        read = {name: read_price(name, text).price() for name, text in (prices or {}).items()}
        self.default = read.pop(DEFAULT, None)
        self._exact = read
        wild = sorted(filter(_WILD.search, read), key=len, reverse=True)
        self._wild = [(re.compile(fnmatch.translate(name)), read[name]) for name in wild]

    def named(self, model: str) -> Price | None:
        """The price under this name, or else under the longest pattern that matches it. ``*`` is
        ignored."""
        if not self._exact:
            return None
        exact = self._exact.get(model)
        if exact is not None:
            return exact
        return next((price for pattern, price in self._wild if pattern.match(model)), None)
