"""The OpenAI-compatible API of Google (Gemini)."""

from __future__ import annotations

from providers.rows import (
    LIST,
    WORDS,
    Fields,
    Provider,
    Published,
    Row,
    cached,
    delta_chunk,
    finish_chunk,
    on_a_last_chunk,
    on_every_chunk,
    on_the_finish_chunk,
    reasoned,
    tokens,
)

_DOCS = "https://ai.google.dev/gemini-api/docs/openai"
_OWN = "https://ai.google.dev/api/generate-content#UsageMetadata"
_PRICES = "https://ai.google.dev/gemini-api/docs/pricing"
_CALL = {
    "id": "function-call-1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
    "extra_content": {"google": {"thought_signature": "CiQBVKhc7"}},
}


def _own(**metadata: int) -> dict[str, Fields | list[Fields]]:
    """A whole answer with the usage in Google's own names."""
    message = {"role": "assistant", "content": "".join(WORDS)}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"choices": choices, "usageMetadata": metadata}


def _own_chunks(**metadata: int) -> tuple[Fields, ...]:
    pieces = (delta_chunk({"content": word}) for word in WORDS)
    return (*pieces, {**finish_chunk(), "usageMetadata": metadata})


_CACHED_AND_THOUGHT = {
    "promptTokenCount": 2000,
    "cachedContentTokenCount": 1900,
    "candidatesTokenCount": 4,
    "thoughtsTokenCount": 6,
    "totalTokenCount": 2010,
}
_TOOL_USE = {
    "promptTokenCount": 100,
    "toolUsePromptTokenCount": 500,
    "candidatesTokenCount": 10,
    "totalTokenCount": 610,
}

PROVIDER = Provider(
    name="Google",
    cached="yes",
    reasoning="not in `completion_tokens`; sometimes only in `total_tokens`",
    cost="no",
    streams="in every chunk, as a running total",
    source=_DOCS,
    shape=on_every_chunk,
    rows=(
        Row(
            quirk=(
                "`total_tokens` includes reasoning that `completion_tokens` omits, at the price of "
                "Gemini 2.5 Flash ($0.30, $2.50)"
            ),
            rule="bills `total_tokens` minus `prompt_tokens` as the answer",
            source="https://github.com/mozilla-ai/any-llm/pull/1291",
            price=Published("gemini-2.5-flash", {"input_tokens": 20, "output_tokens": 533}),
            usage=tokens(20, 151, total_tokens=553),
            bill=20 * 300 + 533 * 2500,
        ),
        Row(
            quirk="`completion_tokens: 0`, because the model only reasoned",
            rule="bills the reasoning",
            source="https://github.com/router-for-me/CLIProxyAPI/issues/5733",
            message={"content": ""},
            deltas=(),
            usage=tokens(21, 0, total_tokens=81, **reasoned(60)),
            bill=21 * 1000 + 60 * 2000,
        ),
        Row(
            quirk="`reasoning_tokens` next to the other counts, and details in Google's names",
            rule="computes the answer from `total_tokens`",
            source="https://github.com/openai/openai-python/issues/2544",
            usage=tokens(
                2181,
                57,
                total_tokens=2518,
                reasoning_tokens=280,
                traffic_type="ON_DEMAND",
                promptTokensDetails=[{"modality": "TEXT", "tokenCount": 2181}],
                candidatesTokensDetails=[{"modality": "TEXT", "tokenCount": 57}],
                completion_tokens_details=None,
            ),
            bill=2181 * 1000 + 337 * 2000,
        ),
        Row(
            quirk="usage in every chunk of a stream",
            rule="bills only the last usage",
            source="https://github.com/ogx-ai/ogx/issues/5122",
            usage=tokens(18, 4),
            bill=18 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="cached tokens ($0.03)",
            rule="bills them at the price of a cache read",
            source="https://ai.google.dev/gemini-api/docs/caching",
            price=Published(
                "gemini-2.5-flash",
                {"input_tokens": 2000, "cache_read_tokens": 1900, "output_tokens": 10},
            ),
            usage=tokens(2000, 10, **cached(1900)),
            bill=100 * 300 + 1900 * 30 + 10 * 2500,
        ),
        Row(
            quirk="a prompt above 200,000 tokens, for Gemini 2.5 Pro ($2.50, $15)",
            rule="bills the whole prompt and the answer at the rates for long prompts",
            source=_PRICES,
            price=Published("gemini-2.5-pro", {"input_tokens": 250_000, "output_tokens": 100}),
            usage=tokens(250_000, 100),
            bill=250_000 * 2500 + 100 * 15_000,
        ),
        Row(
            quirk="Google's own `usageMetadata`, from a gateway",
            rule="reads it, and adds the reasoning to the answer",
            source=_OWN,
            answer=_own(**_CACHED_AND_THOUGHT),
            chunks=_own_chunks(**_CACHED_AND_THOUGHT),
            bill=100 * 1000 + 1900 * 100 + 10 * 2000,
        ),
        Row(
            quirk="`toolUsePromptTokenCount`, the results of Google's own tools",
            rule="adds them to the prompt",
            source=_OWN,
            answer=_own(**_TOOL_USE),
            chunks=_own_chunks(**_TOOL_USE),
            bill=600 * 1000 + 10 * 2000,
        ),
        Row(
            quirk="a whole tool call in one chunk, with a `thought_signature`",
            rule="passes it on unchanged",
            source="https://ai.google.dev/gemini-api/docs/thought-signatures",
            message={"content": None, "tool_calls": [_CALL]},
            deltas=({"tool_calls": [_CALL]},),
            shape=on_a_last_chunk,
            usage=tokens(60, 14, total_tokens=120),
            bill=60 * 1000 + 60 * 2000,
        ),
        Row(
            quirk="audio and images as lists of modalities ($40 and $30)",
            rule="bills these tokens at `audio` and `image_output`",
            source="https://ai.google.dev/api/generate-content#UsageMetadata",
            price={**LIST, "audio": "0.00004", "image_output": "0.00003"},
            shape=on_the_finish_chunk,
            usage={
                "promptTokenCount": 90,
                "candidatesTokenCount": 1292,
                "totalTokenCount": 1382,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 10},
                    {"modality": "AUDIO", "tokenCount": 80},
                ],
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1290}],
            },
            bill=10 * 1000 + 80 * 40_000 + 2 * 2000 + 1290 * 30_000,
        ),
        Row(
            quirk="the field names of Google's Python library, from a gateway",
            rule="bills the answer and the reasoning",
            source="https://github.com/googleapis/python-genai/blob/main/google/genai/types.py",
            shape=on_the_finish_chunk,
            usage={
                "prompt_token_count": 10,
                "candidates_token_count": 2,
                "thoughts_token_count": 5,
                "total_token_count": 17,
            },
            bill=10 * 1000 + 7 * 2000,
        ),
    ),
)
