"""Answers of a model are the same however their bytes were cut."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattfare_mw import TokenUsage, ToolCall, WattfareError
from wattfare_mw.completions import Metering, StreamReader, metering, read_completion

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6)


def chunk_of(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def call_of(n: int) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    return {"choices": [{"delta": {"tool_calls": [{"index": n, "id": "t", "function": function}]}}]}


EVENTS = st.one_of(
    TEXTS.map(lambda text: f"data: {json.dumps(chunk_of(text), ensure_ascii=False)}"),
    TEXTS.map(lambda text: "data: " + json.dumps(chunk_of(text), indent=1)).map(
        lambda event: event.replace("\n", "\ndata: ")
    ),
    st.just(": OPENROUTER PROCESSING"),
    st.just("event: ping\ndata"),
    st.just('data: {"error": {"code": "budget_exceeded", "message": "no"}}'),
    st.just("data: banana"),
    st.just("data: [DONE]"),
    st.just('data: {"choices": [], "usage": {"prompt_tokens": 2, "cost": 1e-6}}'),
    st.integers(0, 2).map(lambda n: f"data: {json.dumps(call_of(n))}"),
    st.just('data: {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}'),
)  # fmt: skip


def read(chunks: list[bytes]) -> tuple[list[Any], str, Any]:
    """What a reader returns: its chunks, how it ended, and its final state."""
    reader = StreamReader()
    got: list[Any] = []
    ended = "well"
    try:
        for data in chunks:
            got.extend(reader.feed(data))  # one by one: chunks before an error are kept
        got.extend(reader.end())
    except WattfareError as error:
        ended = f"{error.code}: {error}"
    state = (
        reader.text, reader.tool_calls, reader.finish_reason, reader.usage, reader.cost_usd,
        reader.done,
    )  # fmt: skip
    return got, ended, state


@given(
    st.lists(EVENTS, max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 2000), max_size=25),
    st.booleans(),
)
def test_chunks_are_the_same_however_the_stream_is_cut(
    events: list[str], line_end: str, places: list[int], ended: bool
) -> None:
    text = "".join(f"{event}\n\n" for event in events)
    body = text.replace("\n", line_end).encode()
    if not ended:
        body = body[:-1]
    cut: list[bytes] = []
    last = 0
    for place in sorted({place % (len(body) + 1) for place in places}):
        cut.append(body[last:place])
        last = place
    cut.append(body[last:])
    assert read(cut) == read([body])
    assert read([body[at : at + 1] for at in range(len(body))]) == read([body])


def test_chunks_before_an_error_in_the_same_piece_are_returned() -> None:
    reader = StreamReader()
    one = b'data: {"choices": [{"delta": {"content": "one"}}]}\n\n'
    chunks = reader.feed(one + b'data: {"error": {"code": "budget_exceeded"}}\n\n')
    assert next(chunks).text == "one"
    with pytest.raises(WattfareError):
        next(chunks)


def test_data_after_done_is_ignored() -> None:
    reader = StreamReader()
    assert list(reader.feed(b'data: [DONE]\n\ndata: {"error": {"code": "auth"}}\n\n')) == []
    assert reader.done
    assert list(reader.feed(b"data: banana\n\n")) == []
    assert list(reader.end()) == []


def test_last_event_may_lack_its_empty_line() -> None:
    reader = StreamReader()
    assert [
        c.text for c in reader.feed(b'data: {"choices": [{"delta": {"content": "x"}}]}\n')
    ] == []
    with pytest.raises(WattfareError):
        list(reader.end())  # it is read, but does not end the stream
    assert reader.text == "x"
    reader = StreamReader()
    list(reader.feed(b"data: [DONE]"))
    assert list(reader.end()) == []
    assert reader.done


def test_tool_calls_without_a_finish_reason_are_complete_at_the_end() -> None:
    reader = StreamReader()
    part = {"index": 0, "id": "t", "function": {"name": "f", "arguments": "{}"}}
    event = {"choices": [{"delta": {"tool_calls": [part]}}]}
    assert [c.tool_calls for c in reader.feed(f"data: {json.dumps(event)}\n\n".encode())] == [()]
    [last] = reader.feed(b"data: [DONE]\n\n")
    assert last.tool_calls == reader.tool_calls == (ToolCall("t", "f", "{}"),)


def test_first_of_several_choices_is_read() -> None:
    reader = StreamReader()
    event = {
        "choices": [
            {"index": 1, "delta": {"content": "second"}, "finish_reason": "stop"},
            {"index": 0, "delta": {"content": "first"}},
        ]
    }
    [chunk] = reader.feed(f"data: {json.dumps(event)}\n\n".encode())
    assert (chunk.text, chunk.finish_reason) == ("first", None)
    assert len(chunk.raw["choices"]) == 2


def test_text_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    body = {"choices": [{"message": {"content": parts}}]}
    assert read_completion(200, json.dumps(body).encode()).text == "ab"


@pytest.mark.parametrize(
    ("usage", "metered"),
    [
        (None, Metering()),
        ({}, Metering(TokenUsage(0, 0, 0))),
        ({"prompt_tokens": 2, "completion_tokens": 3}, Metering(TokenUsage(2, 3, 5))),
        ({"prompt_tokens": 2, "total_tokens": 9}, Metering(TokenUsage(2, 0, 9))),
        ({"cost": 0.1}, Metering(TokenUsage(), Decimal("0.1"))),
        ({"cost": 0}, Metering(TokenUsage(), Decimal(0))),
        ({"cost": None}, Metering(TokenUsage())),
        ({"cost": "0.1"}, Metering(TokenUsage(), Decimal("0.1"))),
        ({"cost": "1e-6"}, Metering(TokenUsage(), Decimal("0.000001"))),
        ({"cost": "NaN"}, Metering(TokenUsage())),
        ({"cost": "1e99999999999"}, Metering(TokenUsage())),
        (
            {"cost": {"total_cost": 0.1, "input_tokens_cost": 0.04}},
            Metering(TokenUsage(), Decimal("0.1")),
        ),
        ({"input_tokens": 2, "output_tokens": 3}, Metering(TokenUsage(2, 3, 5))),
        ({"prompt_tokens": 2, "completion_tokens": None}, Metering(TokenUsage(2, 0, 2))),
        ({"prompt_tokens": 2, "completion_tokens": -3}, Metering(TokenUsage(2, 0, 2))),
        ({"prompt_tokens": 2.0, "completion_tokens": [3]}, Metering(TokenUsage(2, 0, 2))),
        ({"prompt_tokens": True, "cost": 0.1}, Metering(None, Decimal("0.1"))),
        ({"cost": -1}, Metering(TokenUsage())),
        ({"cost": True}, Metering(TokenUsage())),
        ({"prompt_tokens": "2", "cost": 0.1}, Metering(TokenUsage(2, 0, 2), Decimal("0.1"))),
        ({"prompt_tokens": 2.5, "cost": 0.1}, Metering(None, Decimal("0.1"))),
        ("free", Metering()),
        ([], Metering()),
    ],
)
def test_metering_of_an_answer(usage: Any, metered: Metering) -> None:
    assert metering(json.dumps({"usage": usage}).encode()) == metered


@pytest.mark.parametrize("cost", [b"1e999", b"1e99999999999999999999", b"1e-99999999999999999999"])
def test_invalid_cost_does_not_lose_the_answer(cost: bytes) -> None:
    body = b'{"usage": {"prompt_tokens": 1, "cost": ' + cost + b"}}"
    assert metering(body) == Metering(TokenUsage(1, 0, 1))


@pytest.mark.parametrize(
    "inside", [b'"\xff"', b"[" * 90_000 + b"]" * 90_000, b"1e999", b"1e99999999999999999999"]
)
def test_unreadable_answer_is_a_typed_error(inside: bytes) -> None:
    for body in (b'{"choices": [{"x": %s}]}', b'{"choices": [{}], "x": %s}'):
        with pytest.raises(WattfareError) as caught:
            read_completion(200, body % inside)
        assert (caught.value.code, caught.value.status) == ("unknown", 200)


def test_raw_answer_has_plain_numbers() -> None:
    raw = read_completion(200, b'{"choices": [{}], "x": 1.5, "y": [1e3]}').raw
    assert raw == {"choices": [{}], "x": 1.5, "y": [1000.0]}
    assert isinstance(raw["x"], float)


# -- one odd field


def streamed(*events: Any) -> StreamReader:
    reader = StreamReader()
    for event in events:
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        for _ in reader.feed(b"data: " + data + b"\n\n"):
            pass
    list(reader.feed(b"data: [DONE]\n\n"))
    return reader


def delta_of(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


USAGE = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": None, "usage": USAGE},
        {"usage": USAGE},
        {"choices": {}, "usage": USAGE},
        {"choices": [], "x_groq": {"id": "r", "usage": USAGE}},
        {"choices": [{"index": 0, "delta": None, "usage": USAGE}]},
        {"choices": [{"index": None, "delta": {"content": None}}], "usage": USAGE},
        {"id": 7, "model": 8, "choices": [{"index": "0", "delta": []}], "usage": USAGE},
        {
            "choices": [{"delta": {"content": [{"type": "thinking", "thinking": []}]}}],
            "usage": USAGE,
        },
        {"choices": [], "usage": {**USAGE, "prompt_tokens_details": "none", "cost": "free"}},
    ],
    ids=str,
)
def test_odd_field_does_not_lose_the_answer(odd: dict[str, Any]) -> None:
    reader = streamed(delta_of(content="one"), delta_of("stop"), odd, b"null", b"", b"[]")
    assert (reader.text, reader.finish_reason) == ("one", "stop")
    assert reader.usage == TokenUsage(2, 1, 3)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"id": 5, "model": 6, "choices": [{"message": {"content": "x"}}]}, "x"),
        ({"choices": [{"index": None, "message": {"content": "x"}, "finish_reason": ""}]}, "x"),
        ({"choices": [{"message": {"content": "x", "tool_calls": None}}], "usage": "free"}, "x"),
        ({"choices": [{"message": {"content": ["y", {"text": "x"}, {"text": None}]}}]}, "x"),
        ({"choices": [{"message": None}]}, ""),
        ({"choices": [None, {"message": {"content": "x"}}]}, "x"),
        ({"choices": {"message": {"content": "x"}}}, "x"),
    ],
    ids=str,
)
def test_odd_field_of_a_whole_answer(fields: dict[str, Any], text: str) -> None:
    read_ = read_completion(200, json.dumps(fields).encode())
    assert (read_.text, read_.finish_reason) == (text, None)
    assert read_.raw == fields
    assert read_.id in (None, "5")


@pytest.mark.parametrize("data", [b'{"error": "no"}', b'{"error": {"message": "no"}}'])
def test_error_event_is_never_ignored(data: bytes) -> None:
    with pytest.raises(WattfareError, match="no") as caught:
        streamed(delta_of(content="one"), data)
    assert caught.value.code == "upstream"


# -- tool calls


def part(arguments: Any = None, **fields: Any) -> dict[str, Any]:
    function = {
        "arguments": arguments,
        **({"name": fields.pop("name")} if "name" in fields else {}),
    }
    return {"function": function, **fields}


A = ToolCall("a", "w", '{"city":"Oslo"}')
B = ToolCall("b", "t", '{"tz":"UTC"}')
WHOLE_A = part(A.arguments, id="a", name="w")
WHOLE_B = part(B.arguments, id="b", name="t")


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        ([{**WHOLE_A, "index": 0}, {**WHOLE_B, "index": 0}], (A, B)),
        ([{**WHOLE_A, "index": None}, {**WHOLE_B, "index": None}], (A, B)),
        ([WHOLE_A, WHOLE_B], (A, B)),
        ([{**WHOLE_A, "index": 1}, {**WHOLE_B, "index": 0}], (B, A)),
        ([part({"city": "Oslo"}, id="a", name="w")], (A,)),
        ([part({}, id="a", name="w"), part(A.arguments)], (A,)),
        ([part("", id="a", name="w"), part({})], (ToolCall("a", "w", "{}"),)),
        ([part("", id="a", name="w")], (ToolCall("a", "w", ""),)),
        (
            [part(None, id=5, name="w", index=0), part("{}", id=5, index=0)],
            (ToolCall("5", "w", "{}"),),
        ),
        # Empty arguments come first, then the real ones.
        ([part("{}", id="a", name="w"), part('{"city":'), part('"Oslo"}')], (A,)),
        ([part("{}", id="a", name="w", index=0), part(A.arguments, id="a", index=0)], (A,)),
        # Mistral's default id is the text "null".
        (
            [part("{}", id="null", name="w"), part(A.arguments, id="null", name="w")],
            (ToolCall("", "w", "{}"), ToolCall("", "w", A.arguments)),
        ),
        # The id comes late.
        ([part("{", index=0, name="w"), part("}", index=0, id="a")], (ToolCall("a", "w", "{}"),)),
        # Without ids, a name after complete arguments starts another call.
        (
            [
                part(A.arguments, name="w", id="", index=0),
                part(A.arguments, name="w", id="", index=0),
            ],
            (ToolCall("", "w", A.arguments),) * 2,
        ),
        (
            [part("{}", name="w"), part("", name="w"), part('{"a":', name=""), part("1}")],
            (ToolCall("", "w", "{}"), ToolCall("", "w", '{"a":1}')),
        ),
        (
            [part("", name="w"), part("{}", name="w"), part("", name="w")],
            (ToolCall("", "w", "{}"),),
        ),
        (
            [part("{}", name="w", index=0), part("{}", name="t", index=0)],
            (ToolCall("", "w", "{}"), ToolCall("", "t", "{}")),
        ),
        # Invalid parts.
        ([None, 5, WHOLE_A, {"function": None, "index": 0}, {}], (A,)),
    ],
    ids=str,
)
def test_tool_calls_in_the_formats_of_providers(
    parts: list[Any], calls: tuple[ToolCall, ...]
) -> None:
    one_by_one = [delta_of("", tool_calls=[each]) for each in parts]
    for events in (one_by_one, [delta_of("", tool_calls=parts)]):
        reader = streamed(*events, delta_of("tool_calls"))
        assert reader.tool_calls == calls
        assert reader.finish_reason == "tool_calls"


def test_arguments_as_an_object_in_a_whole_answer() -> None:
    message = {"content": None, "tool_calls": [part({"city": "Oslo"}, id="a", name="w"), WHOLE_B]}
    body = json.dumps({"choices": [{"message": message}]}).encode()
    assert read_completion(200, body).tool_calls == (A, B)


OBJECTS = st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers(), max_size=3)
PADDING = st.sampled_from([{}, {"id": None}, {"id": ""}, {"type": ""}, {"type": None}])
NAME_PADDING = st.sampled_from([{}, {"name": None}, {"name": ""}, {"name": "f"}])
INDEXES = st.sampled_from(["own", "zero", "null", "absent"])


@given(st.data(), st.lists(OBJECTS, min_size=1, max_size=3), INDEXES, st.booleans())
def test_any_split_and_padding_gives_the_same_calls(
    data: st.DataObject, values: list[dict[str, Any]], indexes: str, ids: bool
) -> None:
    texts = [json.dumps(value) for value in values]
    events: list[Any] = []
    for n, text in enumerate(texts):
        index = {"own": {"index": n}, "zero": {"index": 0}, "null": {"index": None}}.get(
            indexes, {}
        )
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
        pieces = [text[at:to] for at, to in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        for number, arguments in enumerate(pieces):
            fields = dict(data.draw(PADDING))
            function = dict(data.draw(NAME_PADDING))
            if number == 0:
                function = {"name": "f"}
                if ids:
                    fields["id"] = f"call-{n}"
            function["arguments"] = arguments or data.draw(st.sampled_from(["", None]))
            events.append(delta_of("", tool_calls=[{**fields, **index, "function": function}]))
    reader = streamed(*events, delta_of("tool_calls", content=""))
    assert [(call.name, call.arguments) for call in reader.tool_calls] == [
        ("f", text) for text in texts
    ]
    assert [call.id for call in reader.tool_calls] == [
        f"call-{n}" if ids else "" for n in range(len(texts))
    ]
