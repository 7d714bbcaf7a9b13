"""Models that search the web, or that call other models or tools, without being asked to.

Such a model has a price for each token, but the tokens of a request do not bound its cost: it reads
pages, thinks in several rounds or pays for searches. Its calls are held, like calls with a field
whose cost has no bound.
"""

from __future__ import annotations

import re
from decimal import Decimal

import msgspec

from ..chat.families import bare
from ..chat.price import Price

#: Sources, in this order:
#:
#: - Deep research, Perplexity's and OpenAI's: it pays for citations, rounds of reasoning and dozens
#:   of searches (openrouter.ai/perplexity/sonar-deep-research). ``sonar-pro-search`` runs a whole
#:   research (openrouter.ai/perplexity/sonar-pro-search).
#: - OpenAI's models that search in chat completions: a fee for each search, and for some models
#:   also the tokens of the results (developers.openai.com/api/docs/pricing, "Web search").
#: - Groq's systems make up to ten calls of tools: console.groq.com/docs/compound/systems.
#: - xAI's multi-agent models run 4 or 16 agents: openrouter.ai/x-ai/grok-4.20-multi-agent. A prompt
#:   of 40 tokens was billed as 39,263: docs.apiyi.com/en/api-capabilities/grok/multi-agent.
_OPEN_ENDED = re.compile(
    r"deep-?research|^sonar-pro-search|-search-(?:preview|api)(?:-|$)|^compound(?:-|$)|multi-agent"
)
#: Models that search once for each call. The list may have this fee as the price of a search.
_SEARCH_ONCE = re.compile(r"^sonar(?:-|$)|-search-(?:preview|api)(?:-|$)")
#: The fee of a search with OpenAI's models, if the list has none. Source: the page of prices above.
_FEES = (
    (re.compile(r"^gpt-4o(?:-mini)?-search-preview"), Decimal("0.025")),
    (re.compile(r"^gpt-\d+-search-api"), Decimal("0.01")),
)


def is_open_ended(model: str) -> bool:
    """True if the tokens of a request do not bound what this model costs."""
    return _OPEN_ENDED.search(bare(model)) is not None


def with_fee(model: str, price: Price) -> Price:
    """The price with the fee of the search that this model makes in each call.

    Reports do not count this search. A price that already has a fee for each request is unchanged.
    """
    name = bare(model)
    if price.rates.request or _SEARCH_ONCE.search(name) is None:
        return price
    fees = [fee for pattern, fee in _FEES if pattern.search(name) is not None]
    fee = max([price.rates.search or Decimal(0), *fees])
    rates = msgspec.structs.replace(price.rates, request=fee or None, search=None)
    return msgspec.structs.replace(price, rates=rates)
