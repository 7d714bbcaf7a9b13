"""The model behind the service in these tests. It answers each request as a real one does.

It calls a tool if there is one, and follows a schema if the request has one. Its answers have
OpenRouter's fields, and its usage has the details that providers report.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from support.upstream import Exchange, chunk_of, completion_of

MODEL = "openai/gpt-4.1-mini"
MODELS = {
    "data": [
        {
            "id": MODEL,
            "name": "A model",
            "context_length": 128_000,
            "architecture": {
                "modality": "text+image->text",
                "input_modalities": ["text", "image", "file"],
                "output_modalities": ["text"],
                "tokenizer": "GPT",
            },
            "pricing": {
                "prompt": "0.000001",
                "completion": "0.000002",
                "input_cache_read": "0.0000001",
                "image": "0",
                "request": "0",
            },
            "top_provider": {"context_length": 128_000, "max_completion_tokens": 16_384},
        }
    ]
}

#: What each answer uses.
PROMPT, CACHED, COMPLETION, REASONING = 12, 4, 7, 2
USAGE: dict[str, Any] = {
    "prompt_tokens": PROMPT,
    "completion_tokens": COMPLETION,
    "total_tokens": PROMPT + COMPLETION,
    "prompt_tokens_details": {"cached_tokens": CACHED},
    "completion_tokens_details": {"reasoning_tokens": REASONING},
}
#: In USD: the price of these tokens, and a different cost that an upstream reports.
PRICED = Decimal("0.0000224")
NAMED = Decimal("0.0000331")

TEXT = "Paris is sunny."
#: The value of each name in a tool call, or in an answer with a schema.
VALUES = {"city": "Paris", "name": "Paris", "country": "France"}

#: Other fields that OpenRouter adds to a message, and libraries keep.
EXTRAS: dict[str, Any] = {
    "refusal": None,
    "reasoning": "A city.",
    "reasoning_details": [
        {"type": "reasoning.text", "text": "A city.", "format": "unknown", "index": 0}
    ],
    "annotations": [
        {
            "type": "url_citation",
            "url_citation": {
                "url": "https://example.com/paris",
                "title": "Paris",
                "content": "Sunny.",
                "start_index": 0,
                "end_index": 5,
            },
        }
    ],
}


class Model:
    """A script of the fake upstream.

    Attributes:
        reports_cost: True if its usage has the cost, as OpenRouter's does.
    """

    def __init__(self) -> None:
        self.reports_cost = True

    def __call__(self, exchange: Exchange) -> None:
        """Answers as one JSON object or as a stream."""
        request = exchange.json
        usage = {**USAGE, "cost": float(NAMED)} if self.reports_cost else USAGE
        message, finish = reply(request)
        if not request.get("stream"):
            answer = completion_of("", model=MODEL, provider="OpenAI", usage=usage)
            answer["choices"][0] = {
                "index": 0,
                "message": {**message, **EXTRAS},
                "finish_reason": finish,
                "native_finish_reason": finish,
                "logprobs": None,
            }
            exchange.answer(answer)
            return
        exchange.start_stream()
        for delta in deltas(message):
            exchange.event(chunk(delta))
        exchange.event(chunk({}, finish))
        options = request.get("stream_options") or {}
        if options.get("include_usage") or (request.get("usage") or {}).get("include"):
            exchange.event({**chunk(), "usage": usage})
        exchange.done()


def begin(exchange: Exchange) -> dict[str, Any]:
    """Starts a stream without the last delta of its reply. Returns a chunk that adds a space."""
    message, _ = reply(exchange.json)
    exchange.start_stream()
    for delta in [*deltas(message)][:-1]:
        exchange.event(chunk(delta))
    if message.get("tool_calls"):
        return chunk({"tool_calls": [{"index": 0, "function": {"arguments": " "}}]})
    return chunk({"content": " "})


def reply(request: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The message that answers this request, and its finish reason."""
    tools = [tool["function"] for tool in request.get("tools") or []]
    answered = request["messages"][-1]["role"] in ("tool", "function")
    if tools and not answered and request.get("tool_choice") != "none":
        calls = [call_of(tool) for tool in tools]
        return {"role": "assistant", "content": None, "tool_calls": calls[:1]}, "tool_calls"
    wanted = request.get("response_format") or {}
    if wanted.get("type") in ("json_schema", "json_object"):
        schema = (wanted.get("json_schema") or {}).get("schema") or {}
        return {"role": "assistant", "content": json.dumps(fill(schema))}, "stop"
    return {"role": "assistant", "content": TEXT}, "stop"


def call_of(function: dict[str, Any]) -> dict[str, Any]:
    """A call of this tool."""
    return {
        "id": "call_1",
        "type": "function",
        "index": 0,
        "function": {
            "name": function["name"],
            "arguments": json.dumps(fill(function.get("parameters") or {})),
        },
    }


def fill(schema: dict[str, Any]) -> dict[str, Any]:
    """A value that matches this schema."""
    return {name: VALUES[name] for name in schema.get("properties") or VALUES if name in VALUES}


def deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pieces in which a stream sends this message."""
    yield {"role": "assistant", "content": ""}
    for call in message.get("tool_calls") or []:
        arguments = call["function"]["arguments"]
        yield {"tool_calls": [{**call, "function": {**call["function"], "arguments": ""}}]}
        for piece in halves(arguments):
            yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
    if message.get("content"):
        for piece in halves(message["content"]):
            yield {"content": piece}


def halves(text: str) -> tuple[str, str]:
    """The text in two pieces."""
    return text[: len(text) // 2], text[len(text) // 2 :]


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None) -> dict[str, Any]:
    """A chunk of this model, without a choice if there is no delta."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "native_finish_reason": finish}
    choices = [] if delta is None else [choice]
    return chunk_of({"model": MODEL, "provider": "OpenAI", "choices": choices})


# -- attachments of users


def png(width: int = 64, height: int = 48) -> bytes:
    """An image in one colour."""

    def block(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x20\x60\xc0" * width) * height)
    return (
        b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", rows) + block(b"IEND", b"")
    )


def pdf() -> bytes:
    """A document of one page, with a table of its objects."""
    content = b"BT /F1 18 Tf 20 100 Td (Paris is sunny.) Tj ET"
    fonts = b"/Resources << /Font << /F1 5 0 R >> >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R %s >>" % fonts,
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    text = b"%PDF-1.4\n"
    places: list[int] = []
    for number, each in enumerate(objects, 1):
        places.append(len(text))
        text += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(text))
    return text + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (size, table, trailer)


def data_url(media_type: str, data: bytes) -> str:
    """The data as a URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def has_attached(request: dict[str, Any], data: bytes) -> bool:
    """True if the request contains these bytes."""
    return base64.b64encode(data).decode() in json.dumps(request)
