"""Answers of the wrong kind: a stream is made whole, and a whole answer becomes a stream."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.models import answer_kinds, upstream_json


def stream(*chunks: object, end: str = "data: [DONE]\n\n") -> bytes:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + end.encode()


def piece(index: Any, content: str | None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": index, "delta": {"content": content}, **more}]}


def whole(body: bytes) -> dict[str, Any]:
    return json.loads(answer_kinds.as_whole(body))


def test_choices_are_kept_apart() -> None:
    made = whole(
        stream(
            piece(1, "b"),
            piece(0, "a", logprobs={"content": [{"token": "a"}]}),
            piece(0, "a", logprobs={"content": [{"token": "a"}]}),
            piece(1, None, finish_reason="stop"),
            piece(0, None, finish_reason="length"),
            {"choices": [], "usage": {"completion_tokens": 3}},
            {"choices": [], "usage": None},
        )
    )
    first, second = made["choices"]
    assert (first["index"], second["index"]) == (0, 1)
    assert (first["message"]["content"], first["finish_reason"]) == ("aa", "length")
    assert (second["message"]["content"], second["finish_reason"]) == ("b", "stop")
    assert first["logprobs"] == {"content": [{"token": "a"}] * 2}
    assert made["usage"] == {"completion_tokens": 3}
    assert "error" not in made


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("", "broke off"),
        ("event: error\ndata: {\"message\": \"boo\"}\n\n", "boo"),
        ("data: {\"error\": {\"message\": \"boo\"}}\n\n", "boo"),
        ("data: {\"choices\": [{\"index\": 0, \"finish_reason\": \"stop\"}]}\n\n", None),
    ],
)  # fmt: skip
def test_end_of_a_stream(end: str, message: str | None) -> None:
    made = whole(stream(piece(0, "one"), end=end))
    assert made["choices"][0]["message"]["content"] == "one"
    if message is None:
        assert "error" not in made
    else:
        assert message in made["error"]["message"]


def test_odd_events_lose_nothing() -> None:
    odd: list[object] = [
        None,
        [],
        "ping",
        {"choices": None},
        {"choices": [None]},
        piece(10**9, "x"),
        5,
    ]
    made = whole(b": ping\n\ndata: ping\n\n" + stream(*odd, piece(None, "one"), piece("0", " two")))
    assert made["choices"][0]["message"]["content"] == "one two"


@pytest.mark.parametrize("body", [b"", b"7", b"<html>", b"{}", b'{"choices": []}', b"[]"])
def test_anything_else_is_no_stream(body: bytes) -> None:
    assert answer_kinds.as_stream(body) is None
    assert not answer_kinds.is_framed(body)


@pytest.mark.parametrize(
    "body",
    [
        b":\n\n" * 200_000,
        b": x\r\n\r\n" * 200_000 + b"z",
        b"\n" * 10**6 + b":" * 10**6,
        b": a\n" * 200_000,
        b"\n" * 10**6 + b"data: [DONE]x",
        b" " * 10**6 + b"[DONE]",
    ],
    ids=range(6),
)
def test_hostile_stream_takes_linear_time(body: bytes) -> None:
    began = time.perf_counter()
    with suppress(WattfareError):  # it may have too many lines
        answer_kinds.as_whole(body)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("field", "kept"),
    [
        ("logprobs", {"content": [{"token": "a"}] * 10}),
        ("delta", {"parts": [1] * 10}),
        ("delta", {"parts": [[[[[[[[[[]]]]]]]]]]}),
    ],
)
def test_lists_of_a_stream_have_a_limit(
    monkeypatch: pytest.MonkeyPatch, field: str, kept: dict[str, Any]
) -> None:
    monkeypatch.setattr(upstream_json, "MAX_ELEMENTS", 1_000)
    chunk = {"choices": [{"index": 0, field: kept}]}
    assert whole(stream(*[chunk] * 30))
    with pytest.raises(WattfareError, match="too many values"):
        whole(stream(*[chunk] * 200))


def test_text_of_a_stream_has_no_limit_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_json, "MAX_ELEMENTS", 1_000)
    [choice] = whole(stream(*[piece(0, "a, b, c, ")] * 1_000))["choices"]
    assert choice["message"]["content"] == "a, b, c, " * 1_000
