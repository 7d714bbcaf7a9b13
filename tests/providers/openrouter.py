"""OpenRouter."""

from __future__ import annotations

from providers.rows import (
    LIST,
    WORDS,
    Provider,
    Row,
    cached,
    delta_chunk,
    failed_choice,
    finish_chunk,
    on_a_last_chunk,
    reasoned,
    tokens,
)

_USAGE = "https://openrouter.ai/docs/use-cases/usage-accounting"
_PRICES = "https://www.openrouter.ai/docs/client-sdks/python/components/pricing.md"
_STREAMS = "https://openrouter.ai/docs/api-reference/streaming"
_IMAGES = "https://openrouter.ai/docs/features/multimodal/image-generation"
_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}

_COST_DETAILS = "https://www.openrouter.ai/docs/client-sdks/python/components/costdetails.md"

PROVIDER = Provider(
    name="OpenRouter",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="yes, in `usage.cost`",
    streams="in a last chunk, always",
    source=_USAGE,
    shape=on_a_last_chunk,
    note=(
        "OpenRouter can use your own key of the model's provider (BYOK). Then `usage.cost` is "
        "only OpenRouter's fee, and the provider charges your key for the rest."
    ),
    rows=(
        Row(
            quirk="`is_byok: true` and `cost: 0`",
            rule="bills `cost` and `cost_details.upstream_inference_cost`",
            source="https://github.com/tailcallhq/forgecode/issues/1641",
            usage=tokens(
                9171,
                113,
                cost=0,
                is_byok=True,
                cost_details={
                    "upstream_inference_cost": 0.0360795,
                    "upstream_inference_prompt_cost": 0.0343845,
                    "upstream_inference_completions_cost": 0.001695,
                },
                **cached(0, audio_tokens=0),
                **reasoned(55, image_tokens=0),
            ),
            bill=36_079_500,
        ),
        Row(
            quirk="`is_byok: true` and a fee",
            rule="bills the sum of the fee and the provider's cost",
            source="https://github.com/Kilo-Org/kilocode/pull/13841",
            usage=tokens(
                9000,
                100,
                cost=0.00046,
                is_byok=True,
                cost_details={"upstream_inference_cost": 0.0092},
            ),
            bill=9_660_000,
        ),
        Row(
            quirk="`is_byok: true` and a cost with an exponent",
            rule="reads it exactly",
            source="https://github.com/Kilo-Org/kilocode/pull/13840",
            usage=tokens(
                20, 4, cost=0, is_byok=True, cost_details={"upstream_inference_cost": 4.45e-6}
            ),
            bill=4450,
        ),
        Row(
            quirk="`is_byok: true` and no cost of the provider",
            rule="bills the tokens, because the fee is only a part of the cost",
            source=_USAGE,
            usage=tokens(
                100, 10, cost=0.000005, is_byok=True, cost_details={"upstream_inference_cost": None}
            ),
            bill=100 * 1000 + 10 * 2000,
        ),
        Row(
            quirk="`is_byok: true`, and only the two parts of the provider's cost",
            rule="bills the sum of the fee and the two parts",
            source=_COST_DETAILS,
            usage=tokens(
                100,
                10,
                cost=0.0001,
                is_byok=True,
                cost_details={
                    "upstream_inference_cost": None,
                    "upstream_inference_prompt_cost": 0.0004,
                    "upstream_inference_completions_cost": 0.00005,
                },
            ),
            bill=550_000,
        ),
        Row(
            quirk="`is_byok: false`, and also the provider's cost",
            rule="bills only `cost`, which includes the provider's cost",
            source="https://github.com/AutomatosAI/automatos-ai/pull/745",
            usage=tokens(
                9000,
                100,
                cost=0.0092,
                is_byok=False,
                cost_details={"upstream_inference_cost": 0.0092},
            ),
            bill=9_200_000,
        ),
        Row(
            quirk="`cost: 0` for a free call",
            rule="bills nothing",
            source=_USAGE,
            usage=tokens(100, 10, cost=0, is_byok=False),
            bill=0,
        ),
        Row(
            quirk="cached and written tokens, and no cost",
            rule="bills them at `input_cache_read` and `input_cache_write` ($1.25)",
            source="https://openrouter.ai/docs/client-sdks/python/api-reference/components/prompttokensdetails.md",
            price={**LIST, "input_cache_write": "0.00000125"},
            usage=tokens(2000, 10, **cached(1000, cache_write_tokens=500)),
            bill=500 * 1000 + 1000 * 100 + 500 * 1250 + 10 * 2000,
        ),
        Row(
            quirk="audio in the prompt, with a price per audio token ($40)",
            rule="bills these tokens at `audio`",
            source=_PRICES,
            price={**LIST, "audio": "0.00004"},
            usage=tokens(100, 10, **cached(0, audio_tokens=80)),
            bill=20 * 1000 + 80 * 40_000 + 10 * 2000,
        ),
        Row(
            quirk="images in the prompt, with a price per image token ($3)",
            rule="bills these tokens at `image_token`",
            source=_PRICES,
            price={**LIST, "image_token": "0.000003"},
            usage=tokens(1000, 10, **cached(0, image_tokens=900)),
            bill=100 * 1000 + 900 * 3000 + 10 * 2000,
        ),
        Row(
            quirk="`overrides` for prompts of 200,000 tokens and more ($2 and $4)",
            rule="bills the whole call at these rates",
            source=_PRICES,
            price={
                **LIST,
                "overrides": [
                    {"min_prompt_tokens": 200_000, "prompt": "0.000002", "completion": "0.000004"}
                ],
            },
            usage=tokens(250_000, 10),
            bill=250_000 * 2000 + 10 * 4000,
        ),
        Row(
            quirk="fees for a request ($0.005) and for each web search ($0.01)",
            rule="also bills the fees",
            source=_PRICES,
            price={**LIST, "request": "0.005", "web_search": "0.01"},
            usage=tokens(100, 10, server_tool_use={"web_search_requests": 3}),
            bill=100 * 1000 + 10 * 2000 + 5_000_000 + 3 * 10_000_000,
        ),
        Row(
            quirk="a price for reasoning ($3)",
            rule="bills reasoning at `internal_reasoning`",
            source=_PRICES,
            price={**LIST, "internal_reasoning": "0.000003"},
            usage=tokens(100, 50, **reasoned(40)),
            bill=100 * 1000 + 10 * 2000 + 40 * 3000,
        ),
        Row(
            quirk="images in the answer, with a price per image token ($30)",
            rule="bills these tokens at `image_output`, and passes the images on",
            source=_IMAGES,
            price={**LIST, "image_output": "0.00003"},
            message={"content": "one ", "images": [_IMAGE]},
            deltas=({"content": "one "}, {"content": "", "images": [_IMAGE]}),
            usage=tokens(100, 1300, completion_tokens_details={"image_tokens": 1290}),
            bill=100 * 1000 + 10 * 2000 + 1290 * 30_000,
        ),
        Row(
            quirk="comments in a stream: `: OPENROUTER PROCESSING`",
            rule="passes them on, up to three in a row",
            source=_STREAMS,
            usage=tokens(18, 4, cost=0.0001),
            chunks=(
                ": OPENROUTER PROCESSING",
                ": OPENROUTER PROCESSING",
                *(delta_chunk({"content": word}, native_finish_reason=None) for word in WORDS),
                finish_chunk(native_finish_reason="STOP"),
                {"choices": [], "usage": tokens(18, 4, cost=0.0001), "provider": "Google"},
            ),
            bill=100_000,
        ),
        Row(
            quirk="the usage of a stream is in a chunk with an empty delta",
            rule="reads it there",
            source=_STREAMS,
            usage=tokens(18, 4, cost=0.0001),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS),
                finish_chunk(native_finish_reason="stop"),
                {
                    **delta_chunk({"role": "assistant", "content": ""}, native_finish_reason=None),
                    "usage": tokens(18, 4, cost=0.0001),
                },
            ),
            bill=100_000,
        ),
        Row(
            quirk="an error before anything was generated, with status 200",
            rule="answers 502, and bills nothing",
            source=_STREAMS,
            answer={"error": {"code": 502, "message": "Provider returned error"}},
            chunks=(
                {
                    "error": {"code": "server_error", "message": "Provider disconnected"},
                    "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
                },
            ),
            fails=True,
            bill=0,
        ),
        Row(
            quirk="an error after some words, with status 200",
            rule="answers 502, and bills the reported usage; for a stream, the tokens sent so far",
            source=_STREAMS,
            answer=failed_choice({"code": 502, "message": "Upstream failed"}, **tokens(18, 2)),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS[:2]),
                finish_chunk(error={"code": 502, "message": "Upstream failed"}),
            ),
            fails=True,
            bill=18 * 1000 + 2 * 2000,
            stream_bill=11 * 1000 + 2 * 2000,
        ),
    ),
)
