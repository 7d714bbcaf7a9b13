"""Perplexity (Sonar)."""

from __future__ import annotations

from itertools import accumulate

from providers.rows import WORDS, Chunk, Fields, Provider, Row, tokens

_DOCS = "https://docs.perplexity.ai/api-reference/chat-completions-post"
_DEEP = "https://github.com/bgeneto/open-webui-cost-tracker/issues/6"


def _stream(usage: Fields) -> tuple[Chunk, ...]:
    """Each chunk has the delta, the message so far, and the usage so far. Only the last usage is
    complete."""
    prompt, chunks = usage["prompt_tokens"], list[Chunk]()
    for passed, (word, said) in enumerate(zip(WORDS, accumulate(WORDS), strict=True), start=1):
        last = passed == len(WORDS)
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": word},
            "message": {"role": "assistant", "content": said},
            "finish_reason": "stop" if last else None,
        }
        so_far = tokens(prompt, passed, search_context_size="low")
        chunks.append(
            {
                "choices": [choice],
                "citations": ["https://example.com/1"],
                "usage": usage if last else so_far,
            }
        )
    return tuple(chunks)


_SONAR = tokens(
    9,
    100,
    search_context_size="low",
    cost={
        "input_tokens_cost": 0.000009,
        "output_tokens_cost": 0.0001,
        "request_cost": 0.005,
        "total_cost": 0.005109,
    },
)
_RESEARCH = tokens(108, 3256, citation_tokens=7299, num_search_queries=74, reasoning_tokens=73248)
_RESEARCH_COST = {
    "input_tokens_cost": 0.000216,
    "output_tokens_cost": 0.026048,
    "citation_tokens_cost": 0.014598,
    "reasoning_tokens_cost": 0.219744,
    "search_queries_cost": 0.37,
    "total_cost": 0.630606,
}
_RESEARCH_PRICE = {
    "prompt": "0.000002",
    "completion": "0.000008",
    "internal_reasoning": "0.000003",
    "web_search": "0.005",
}

PROVIDER = Provider(
    name="Perplexity",
    cached="no cache",
    reasoning="neither in `completion_tokens` nor in `total_tokens`",
    cost="yes, in `usage.cost.total_cost`",
    streams="in every chunk, as a running total",
    source=_DOCS,
    note=(
        "Perplexity has ended this API for its own models, according to "
        "[Stigg](https://docs.stigg.io/documentation/ai-agents/providers/perplexity) "
        "(September 2026). Gateways still use this format."
    ),
    shape=lambda _deltas, usage: list(_stream(usage or {})),
    rows=(
        Row(
            quirk="`cost` is an object, and a stream has a usage in every chunk",
            rule="bills `total_cost` of the last one, and passes the object on as `cost_details`",
            source=_DOCS,
            usage=_SONAR,
            bill=5_109_000,
        ),
        Row(
            quirk="deep research, with a cost",
            rule="bills `total_cost`",
            source=_DEEP,
            price=_RESEARCH_PRICE,
            usage={**_RESEARCH, "cost": _RESEARCH_COST},
            bill=630_606_000,
        ),
        Row(
            quirk="deep research without a cost ($2, $8, reasoning $3, a search $0.005)",
            rule=(
                "adds the reasoning, because it is more than the answer, and bills the searches. "
                "Most models do not charge `citation_tokens`, so it ignores these"
            ),
            source=_DEEP,
            price=_RESEARCH_PRICE,
            usage=_RESEARCH,
            bill=108 * 2000 + 3256 * 8000 + 73248 * 3000 + 74 * 5_000_000,
        ),
    ),
)
