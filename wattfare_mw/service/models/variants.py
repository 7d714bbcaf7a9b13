"""OpenRouter's variants of a model: the suffixes after a colon in its name.

``:nitro``, ``:floor`` and ``:exacto`` choose among the providers of one model, and are not listed
with a price. ``:online`` searches the web for each call. All others (``:free``, ``:thinking``,
``:extended``, …) are separate models in the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache

import msgspec

from ... import model_entry

#: The price of a search in USD, unless the list has a higher one. It is for five results at $4 per
#: 1,000 (openrouter.ai/docs/features/web-search).
SEARCH_USD = Decimal("0.02")
#: The length of five results, in tokens. Their text becomes part of the prompt.
SEARCH_TOKENS = 10_000


class Variant(msgspec.Struct, frozen=True):
    """A model's parsed name.

    Attributes:
        base: its name in the list.
        routed: True if the variant chooses the provider. Then the price needs an upper limit.
        searches: the number of web searches of each call.
    """

    base: str
    routed: bool = False
    searches: int = 0


@lru_cache(maxsize=1000)
def read(model: str) -> Variant:
    """Parse a model's name."""
    base, suffixes = model_entry.split(model)
    routed = any(suffix != model_entry.ONLINE for suffix in suffixes)
    return Variant(base, routed, int(model_entry.ONLINE in suffixes))


def answered(name: str, models: Sequence[str]) -> int | None:
    """The index of the model that an answer names; None if the answer names another model.

    Some upstreams name a version of the requested model, and some leave out the provider before the
    slash.
    """
    if name in models:
        return models.index(name)
    said = _base_name(name)
    fits = [place for place, model in enumerate(models) if said.startswith(_base_name(model))]
    return max(fits, key=lambda place: len(_base_name(models[place])), default=None)


def _base_name(model: str) -> str:
    return read(model).base.rpartition("/")[2].lower()
