"""An upstream that works, breaks, reports false usage or hangs: what the client sees, and what is
billed."""

from __future__ import annotations

import json
import threading
from decimal import Decimal

import pytest
from support.patience import PATIENCE
from support.ports import refused_port
from support.service import App, Service, chat_body, eventually, run_service
from support.sockets import send_call
from support.upstream import Exchange, Upstream, chunk_of, completion_of, good

from wattfare_mw.service.chat import prompt_bound

MODEL = {"model": "fake/model"}


@pytest.fixture
def app(forwarding: Service, upstream: Upstream):
    upstream.script = good
    upstream.calls.clear()
    app = forwarding.app()
    app.connect(monthlyUsd=100)
    yield app
    app.close()
    assert not upstream.failures


def billed(app: App) -> Decimal:
    return Decimal(str(app.status()["usage"]["monthlyUsd"]))


def events_of(text: str) -> list[str]:
    assert text.endswith("\n\n")
    return [event.removeprefix("data: ") for event in text[:-2].split("\n\n")]


def error_in(answer) -> str:
    return answer.json()["error"]["code"]


def last_error(answer) -> str:
    assert answer.status_code == 200
    assert "[DONE]" not in answer.text
    return json.loads(events_of(answer.text)[-1])["error"]["code"]


def test_whole_answer_is_forwarded_unchanged(app: App, upstream: Upstream) -> None:
    body = '{"choices": [ {} ],\n "extra": 1.0, "usage": {"cost": 0.0000123, "x": 1}}'
    upstream.script = lambda exchange: exchange.answer(body)
    answer = app.chat(**MODEL, temperature=0.5)
    assert answer.text == body
    assert billed(app) == Decimal("0.0000123")
    sent = upstream.calls[0]
    assert sent.json == chat_body(**MODEL, temperature=0.5, max_tokens=8192)
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["user-agent"] == "wattfare-mw-python"
    assert sent.headers["x-request-id"] == answer.headers["x-request-id"]
    assert not {"authorization", "x-wattfare-user", "cookie"} & set(sent.headers)


def test_stream_is_forwarded_unchanged(app: App, upstream: Upstream) -> None:
    raw = (
        b": OPENROUTER PROCESSING\n\n",
        b'data: {"choices":[{"delta":{"content":"\xe2\x82',
        b'\xac"}}], "x": 1}\r\n\r\n',
        b'event: message\ndata: {"choices":\ndata: []}\n\n',
    )

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        for chunk in raw:
            exchange.chunk(chunk)
        exchange.usage({"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.5})
        exchange.done()

    upstream.script = script
    answer = app.chat(**MODEL, stream=True)
    assert answer.content == b"".join(raw) + b"data: [DONE]\n\n"
    assert upstream.calls[0].json["stream_options"] == {"include_usage": True}
    # Half a dollar is more than the reservation.
    assert 0 < billed(app) < Decimal("0.5")


@pytest.mark.parametrize("asked", [True, False])
def test_usage_chunk_is_sent_only_on_request(app: App, upstream: Upstream, asked: bool) -> None:
    options = (
        {"stream_options": {"include_usage": True, "include_obfuscation": False}} if asked else {}
    )
    answer = app.chat(**MODEL, stream=True, **options)
    assert ('"cost"' in answer.text) is asked
    assert billed(app) == Decimal("0.000011")
    sent = upstream.calls[0].json["stream_options"]
    assert sent == {"include_usage": True, **options.get("stream_options", {})}


REFUSALS = [
    (400, {"message": 'json: unknown field "stream_options"'}),
    (
        400,
        {"error": {"message": "property 'stream_options' is unsupported, did you mean 'stream'?"}},
    ),
    (
        422,
        {
            "object": "error",
            "message": {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "stream_options", "include_usage"],
                        "msg": "Extra inputs are not permitted",
                    }
                ]
            },
        },
    ),
    (400, {"error": {"message": "'stream_options' is only allowed when 'stream' is enabled"}}),
]


@pytest.mark.parametrize(("status", "refusal"), REFUSALS, ids=str)
def test_stream_options_are_left_out_if_the_upstream_refuses_them(
    app: App, upstream: Upstream, status: int, refusal: dict
) -> None:
    # Each name is a model of its own for the memory of the service.
    suffix = ("nitro", "floor", "exacto", "nitro:floor")[REFUSALS.index((status, refusal))]
    model = {"model": f"fake/model:{suffix}"}

    def script(exchange: Exchange) -> None:
        if "stream_options" in exchange.json:
            exchange.answer(refusal, status=status)
        else:
            good(exchange)

    upstream.script = script
    asked = {"stream_options": {"include_usage": True}}
    first = app.chat(**model, stream=True, **asked)
    *_, usage, done = events_of(first.text)
    assert done == "[DONE]"
    cost = json.loads(usage, parse_float=Decimal)["usage"]["cost"]
    assert billed(app) == cost == ESTIMATED_PROMPT + 4 * Decimal("0.000002")
    assert len(upstream.calls) == 2
    # It is remembered for the model.
    assert app.chat(**model, stream=True).status_code == 200
    assert len(upstream.calls) == 3


def test_official_client_works(app: App, upstream: Upstream) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with app.openai() as client:
        whole = client.chat.completions.create(model="fake/model", messages=messages)
        assert whole.choices[0].message.content == "one two three"
        with client.chat.completions.create(
            model="fake/model", messages=messages, stream=True
        ) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "one two three"
    assert billed(app) == Decimal("0.000022")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "ours", "code"),
    [
        (400, 400, "invalid_request"),
        (404, 400, "invalid_request"),
        (422, 400, "invalid_request"),
        (413, 400, "invalid_request"),
        (401, 502, "upstream"),
        (402, 502, "upstream"),
        (403, 502, "upstream"),
        (408, 502, "upstream"),
        (429, 429, "rate_limited"),
        (500, 502, "upstream"),
        (503, 502, "upstream"),
        (529, 502, "upstream"),
        (302, 502, "upstream"),
    ],
)
def test_refusals_of_the_upstream_are_translated(
    app: App, upstream: Upstream, stream: bool, status: int, ours: int, code: str
) -> None:
    error = {"error": {"message": "said the upstream", "code": status}}
    headers = {"retry-after": "7", "location": "http://127.0.0.1:1/"}
    upstream.script = lambda exchange: exchange.answer(error, status=status, headers=headers)
    answer = app.chat(**MODEL, stream=stream)
    assert answer.status_code == ours
    assert error_in(answer) == code
    passed_on = answer.json()["error"]["message"] == "said the upstream"
    assert passed_on is (status not in (401, 402, 403))
    assert answer.headers.get("retry-after") == (
        "7" if status in (302, 408, 429, 500, 503, 529) else None
    )
    assert billed(app) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_moderated_prompt_is_an_invalid_request(app: App, upstream: Upstream, stream: bool) -> None:
    """OpenRouter answers 403, which can also mean an exhausted key. A user who connects again would
    get the same refusal."""
    error: dict = {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"]}}
    upstream.script = lambda exchange: exchange.answer({"error": error}, status=403)
    answer = app.chat(**MODEL, stream=stream)
    assert (answer.status_code, error_in(answer)) == (403, "invalid_request")
    assert answer.json()["error"]["message"] == "flagged"
    assert billed(app) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_error_with_status_200_is_an_error(app: App, upstream: Upstream, stream: bool) -> None:
    error = {"error": {"message": "too many", "code": 429}}
    upstream.script = lambda exchange: exchange.answer(error)
    assert app.chat(**MODEL, stream=stream).status_code == 429
    upstream.script = lambda exchange: exchange.answer({"error": "no"})
    assert app.chat(**MODEL, stream=stream).status_code == 502
    assert billed(app) == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 404, 502])
def test_html_answer_is_a_failure(app: App, upstream: Upstream, stream: bool, status: int) -> None:
    upstream.script = lambda exchange: exchange.answer(
        "<html>nginx</html>", status=status, content_type="text/html"
    )
    answer = app.chat(**MODEL, stream=stream)
    assert error_in(answer) == ("invalid_request" if status == 404 else "upstream")
    assert "nginx" not in answer.text
    assert billed(app) == 0


USED = {"prompt_tokens": 5, "completion_tokens": 3, "cost": 0.000011}
CALL_PARTS = (
    {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"a": '}},
    {"index": 0, "function": {"arguments": "1}"}},
)


def piece(delta: dict, **more) -> dict:
    return chunk_of({"choices": [{"index": 0, "delta": delta, **more}]})


def unrequested(*, ends: bool = True, error: bool = False):
    """A stream with reasoning, text, a tool call and the usage."""

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(b": ping\n\n")
        exchange.event(piece({"role": "assistant", "content": "", "reasoning": "hm "}))
        exchange.word("one ")
        exchange.word("two")
        for part in CALL_PARTS:
            exchange.event(piece({"content": None, "tool_calls": [part]}))
        if error:
            exchange.chunk(b'event: error\ndata: {"message": "boo", "code": 500}\n\n')
        if ends:
            exchange.event(piece({}, finish_reason="tool_calls"))
            exchange.usage(USED)
            exchange.done()
        else:
            exchange.send(b"0\r\n\r\n")

    return script


def test_unrequested_stream_is_made_whole(app: App, upstream: Upstream) -> None:
    """unslothai/unsloth#6570, QuantumNous/new-api#5230."""
    upstream.script = unrequested()
    answer = app.chat(**MODEL)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()["object"] == "chat.completion"
    assert answer.json()["usage"] == USED
    [choice] = answer.json()["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "tool_calls")
    assert choice["message"] == {
        "role": "assistant",
        "content": "one two",
        "reasoning": "hm ",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        ],
    }
    assert billed(app) == Decimal("0.000011")
    assert upstream.calls[0].headers["accept"] == "application/json"


@pytest.mark.parametrize("how", ["breaks off", "error"])
def test_unrequested_stream_that_fails_is_billed(app: App, upstream: Upstream, how: str) -> None:
    upstream.script = unrequested(ends=how != "breaks off", error=how == "error")
    answer = app.chat(**MODEL)
    assert (answer.status_code, error_in(answer)) == (502, "upstream")
    if how == "error":
        assert answer.json()["error"]["message"] == "boo"
    # The usage after an error counts only if it arrives together with the error.
    assert ESTIMATED_PROMPT <= billed(app) < 2 * ESTIMATED_PROMPT


@pytest.mark.parametrize("end", ["[DONE]", '{"error": {"message": "boo"}}', "{broken"])
def test_unrequested_stream_may_stay_open(app: App, upstream: Upstream, end: str) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one")
        exchange.event(piece({}, finish_reason="stop"))
        exchange.event(end)
        exchange.hang()

    upstream.script = script
    answer = app.chat(**MODEL)
    assert answer.status_code == (502 if "boo" in end else 200)


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
@pytest.mark.parametrize(
    ("before", "after"),
    [("", "\n\ndata: [DONE]\n\n"), (": PROCESSING\n\n: PROCESSING\n\n", ""), ("\n\n", "\n")],
)
def test_whole_answer_may_have_parts_of_a_stream(
    app: App, upstream: Upstream, kind: str, before: str, after: str
) -> None:
    """decolua/9router#3492."""
    body = before + json.dumps(completion_of("one two", usage=USED)) + after
    upstream.script = lambda exchange: exchange.answer(body, content_type=kind)
    answer = app.chat(**MODEL)
    assert answer.json()["choices"][0]["message"]["content"] == "one two"
    assert billed(app) == Decimal("0.000011")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/json"])
@pytest.mark.parametrize("first", [b"", b"\n", b": ping\n\n"])
def test_stream_may_have_another_content_type(
    app: App, upstream: Upstream, kind: str, first: bytes
) -> None:
    """nearai/private-ml-sdk#20."""

    def script(exchange: Exchange) -> None:
        exchange.start_stream(kind)
        if first:
            exchange.chunk(first)
        exchange.word("one ")
        exchange.word("two")
        exchange.usage(USED)
        exchange.done()

    upstream.script = script
    answer = app.chat(**MODEL, stream=True)
    assert "".join(words_of(answer.text.removeprefix("\n"))) == "one two"
    assert events_of(answer.text)[-1] == "[DONE]"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert billed(app) == Decimal("0.000011")


@pytest.mark.parametrize("asked", [True, False])
def test_whole_answer_to_a_call_for_a_stream(app: App, upstream: Upstream, asked: bool) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = completion_of("one two", usage={"prompt_tokens": 5, "completion_tokens": 3})
    body["choices"][0]["message"]["tool_calls"] = [call]
    upstream.script = lambda exchange: exchange.answer(body)
    options = {"stream_options": {"include_usage": True}} if asked else {}
    answer = app.chat(**MODEL, stream=True, **options)
    assert answer.status_code == 200
    *chunks, done = events_of(answer.text)
    assert done == "[DONE]"
    first = json.loads(chunks[0])
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"]["content"] == "one two"
    assert first["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}]
    assert "message" not in first["choices"][0]
    assert billed(app) == Decimal("0.000011")
    if asked:
        assert json.loads(chunks[-1])["usage"]["cost"] == 0.000011


@pytest.mark.parametrize("stream", [False, True])
def test_status_201_is_an_answer(app: App, upstream: Upstream, stream: bool) -> None:
    body = completion_of("one two", usage=USED)
    upstream.script = lambda exchange: exchange.answer(body, status=201)
    answer = app.chat(**MODEL, stream=stream)
    assert answer.status_code == 200
    assert "one two" in answer.text
    assert billed(app) == Decimal("0.000011")


def test_stream_that_breaks_midway_is_billed(app: App, upstream: Upstream) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one ")
        exchange.word("two ")
        exchange.chunk(b'data: {"half": ')
        exchange.reset()

    upstream.script = script
    answer = app.chat(**MODEL, stream=True)
    assert last_error(answer) == "upstream"
    assert "half" not in answer.text
    assert len(events_of(answer.text)) == 3
    # Without reported usage, the prompt counts by its length, and each forwarded token counts.
    prompt = -(-len('[{"role":"user","content":"one two three"}]') // 4)
    assert billed(app) == prompt * Decimal("0.000001") + 2 * Decimal("0.000002")


def test_stream_that_ends_without_done(app: App, upstream: Upstream) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one")
        exchange.send(b"0\r\n\r\n")

    upstream.script = script
    assert last_error(app.chat(**MODEL, stream=True)) == "upstream"


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize(
    "tail", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n", b"data:[DONE]\n"]
)
def test_done_without_an_empty_line(
    app: App, upstream: Upstream, tail: bytes, closes: bool
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one")
        exchange.chunk(tail)
        exchange.connection.settimeout(PATIENCE / 6)  # if the end is not noticed
        exchange.send(b"0\r\n\r\n") if closes else exchange.hang()

    upstream.script = script
    answer = app.chat(**MODEL, stream=True)
    assert "".join(words_of(answer.text)) == "one"
    assert events_of(answer.text)[-1].removeprefix("data:") == "[DONE]"


def words_of(text: str) -> list[str]:
    chunks = [json.loads(event) for event in events_of(text) if event.startswith("{")]
    return [choice["delta"].get("content", "") for c in chunks for choice in c.get("choices", ())]


def ended(index: int = 0) -> dict:
    return chunk_of({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})


@pytest.mark.parametrize("last", ["blank line", "no blank line", "usage"])
def test_body_that_ends_after_a_finish_reason_is_complete(
    app: App, upstream: Upstream, last: str
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "cost": 0.000011}

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one")
        final = json.dumps(ended()).encode()
        exchange.chunk(b"data: " + final + (b"" if last == "no blank line" else b"\n\n"))
        if last == "usage":
            final = json.dumps(chunk_of({"choices": [], "usage": usage})).encode()
            exchange.chunk(b"data: " + final)
        exchange.send(b"0\r\n\r\n")

    upstream.script = script
    answer = app.chat(**MODEL, stream=True)
    assert words_of(answer.text)[0] == "one"
    assert events_of(answer.text)[-1] == "[DONE]"
    if last == "usage":
        assert billed(app) == Decimal("0.000011")


@pytest.mark.parametrize("how", ["reset", "another choice", "error", "half"])
def test_finish_reason_alone_does_not_end_the_stream(
    app: App, upstream: Upstream, how: str
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one")
        if how == "half":
            exchange.chunk(b"data: " + json.dumps(ended()).encode()[:-5])
        else:
            exchange.event(ended())
        if how == "reset":
            exchange.reset()
        if how == "error":
            exchange.event({"error": {"message": "no", "code": 500}})
        exchange.send(b"0\r\n\r\n")

    upstream.script = script
    answer = app.chat(**MODEL, stream=True, n=2 if how == "another choice" else 1)
    assert last_error(answer) == "upstream"


def test_upstream_that_breaks_before_any_text(app: App, upstream: Upstream) -> None:
    upstream.script = lambda exchange: exchange.reset()
    answer = app.chat(**MODEL)
    assert (answer.status_code, error_in(answer)) == (502, "upstream")

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.reset()

    upstream.script = script
    assert last_error(app.chat(**MODEL, stream=True)) == "upstream"
    assert billed(app) == 0


@pytest.mark.parametrize("data", ['{"error": {"message": "boo", "code": 500}}', "<html>"])
def test_error_inside_a_stream(app: App, upstream: Upstream, data: str) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one")
        exchange.event(data)
        exchange.done()

    upstream.script = script
    answer = app.chat(**MODEL, stream=True)
    assert last_error(answer) == "upstream"
    assert billed(app) > 0


@pytest.mark.parametrize("before", [b"", b": ping\n\n"], ids=["lines", "events"])
@pytest.mark.parametrize(
    "error",
    [
        b'data: {"error": {"message": "boo"}}',
        b'error: {"message": "boo", "code": 500}',
        b'{"error": {"message": "boo"}}',
    ],
)
def test_words_before_an_error_in_the_same_read_are_sent(
    app: App, upstream: Upstream, before: bytes, error: bytes
) -> None:
    word = json.dumps(chunk_of({"choices": [{"index": 0, "delta": {"content": "one "}}]}))

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(before + b"data: " + word.encode() + b"\n\n" + error + b"\n\n")
        exchange.done()

    upstream.script = script
    answer = app.chat(**MODEL, stream=True)
    assert words_of(answer.text) == ["one "]
    assert last_error(answer) == "upstream"
    assert "boo" in answer.text
    assert "\nerror:" not in answer.text
    assert billed(app) == ESTIMATED_PROMPT + Decimal("0.000002")


LIES = [
    None,
    "a string",
    [],
    {},
    {"cost": -1},
    {"cost": float("nan")},
    {"cost": float("inf")},
    {"cost": "cheap"},
    {"cost": True},
    {"cost": 1e300},
    {"cost": [1]},
    {"prompt_tokens": -5, "completion_tokens": -5},
    {"prompt_tokens": "seven", "completion_tokens": None},
    {"prompt_tokens": 1.5, "completion_tokens": -3},
    {"prompt_tokens": True, "completion_tokens": True},
    {"prompt_tokens": 10**30, "completion_tokens": 10**30},
]
ESTIMATED_PROMPT = 11 * Decimal("0.000001")


@pytest.mark.parametrize("usage", LIES, ids=repr)
@pytest.mark.parametrize("stream", [False, True])
def test_false_usage_is_ignored(app: App, upstream: Upstream, stream: bool, usage: object) -> None:
    def script(exchange: Exchange) -> None:
        if not stream:
            exchange.answer(completion_of("one two", usage=usage))
            return
        exchange.start_stream()
        exchange.word("one ")
        exchange.word("two")
        exchange.event(chunk_of({"choices": [], "usage": usage}))
        exchange.done()

    upstream.script = script
    answer = app.chat(**MODEL, stream=stream)
    assert answer.status_code == 200
    assert "NaN" not in answer.text
    assert "Infinity" not in answer.text
    if stream:
        assert events_of(answer.text)[-1] == "[DONE]"
    else:
        assert answer.json()["choices"][0]["message"]["content"] == "one two"
    # Two chunks with seven bytes, four for a token.
    assert billed(app) == ESTIMATED_PROMPT + 2 * Decimal("0.000002")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "usage", [{"cost": 99}, {"prompt_tokens": 10**6, "completion_tokens": 10**6}], ids=repr
)
def test_bill_never_exceeds_the_reservation(
    app: App, upstream: Upstream, stream: bool, usage: dict
) -> None:
    def script(exchange: Exchange) -> None:
        if not stream:
            exchange.answer(completion_of("one", usage=usage))
            return
        exchange.start_stream()
        exchange.word("one")
        exchange.usage(usage)
        exchange.usage(usage)
        exchange.done()

    upstream.script = script
    assert app.chat(**MODEL, stream=stream, max_tokens=10).status_code == 200
    prompt = prompt_bound.bound(upstream.calls[0].json)
    assert billed(app) == prompt * Decimal("0.000001") + 10 * Decimal("0.000002")


@pytest.mark.parametrize("models", [["nobody/knows"], "fake/tiny", [1], {}, ["x"] * 17])
def test_refusal_names_fallbacks_without_a_price(app: App, upstream: Upstream, models) -> None:
    # Any of them may answer, and cost more than the reservation.
    answer = app.chat(**MODEL, models=models)
    assert error_in(answer) == "invalid_request"
    words = ("`models`", "nobody/knows")
    assert any(word in answer.json()["error"]["message"] for word in words)
    assert upstream.calls == []


@pytest.mark.parametrize("name", ["Model", "MODELS", "model\u017f", "Max_Tokens", "N", "Stream"])
def test_field_name_that_an_upstream_may_misread_is_refused(
    app: App, upstream: Upstream, name: str
) -> None:
    assert error_in(app.chat(**MODEL, **{name: 1})) == "invalid_request"
    assert upstream.calls == []


def test_half_a_surrogate_pair_does_not_lose_an_answer(app: App, upstream: Upstream) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "cost": 0.000011}
    body = json.dumps(completion_of("half \ud83d, whole \U0001f600", usage=usage))
    assert "half \\ud83d," in body
    upstream.script = lambda exchange: exchange.answer(body)
    answer = app.chat(**MODEL)
    assert answer.status_code == 200
    content = answer.json()["choices"][0]["message"]["content"]
    assert content == "half \ufffd, whole \U0001f600"
    assert billed(app) == Decimal("0.000011")


def test_many_tokens_in_one_chunk_are_counted(app: App, upstream: Upstream) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("four" * 20)
        exchange.done()

    upstream.script = script
    app.chat(**MODEL, stream=True)
    assert billed(app) == ESTIMATED_PROMPT + 20 * Decimal("0.000002")


def test_usage_is_billed_by_price_if_no_cost_is_reported(app: App, upstream: Upstream) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    upstream.script = lambda exchange: exchange.answer(completion_of("x", usage=usage))
    app.chat(**MODEL)
    assert billed(app) == Decimal("0.000011")
    # Prices below a nano-dollar for a token, rounded up once: 0.5 + 0.9 nano-dollars are two.
    app.chat(model="fake/tiny")
    assert billed(app) == Decimal("0.000011002")


@pytest.mark.parametrize("model", ["fake/router", "fake/unpriced", "no/such"])
def test_model_without_a_price_is_refused(app: App, upstream: Upstream, model: str) -> None:
    answer = app.chat(model=model)
    assert (answer.status_code, error_in(answer)) == (400, "invalid_request")
    assert model in answer.text
    assert upstream.calls == []


def test_limit_is_sent_under_the_clients_own_name(app: App, upstream: Upstream) -> None:
    app.chat(**MODEL, max_completion_tokens=10)
    assert upstream.calls[0].json["max_completion_tokens"] == 10
    assert "max_tokens" not in upstream.calls[0].json


@pytest.mark.parametrize("when", ["before", "middle"])
def test_disconnected_client_closes_the_upstream(app: App, upstream: Upstream, when: str) -> None:
    arrived = threading.Event()

    def script(exchange: Exchange) -> None:
        if when == "middle":
            exchange.start_stream()
            exchange.word("one")
        arrived.set()
        exchange.hang()

    upstream.script = script
    if when == "middle":
        body = chat_body(**MODEL, stream=True)
        with app.http.stream(
            "POST", "/chat/completions", json=body, headers=app.paid_by("u1")
        ) as it:
            chunks = it.iter_bytes()
            assert b"one" in next(chunks)
    else:
        visitor = send_call(app, **MODEL, stream=True)
        assert arrived.wait(PATIENCE)
        visitor.leave()
    upstream.wait_gone()
    # It is settled once it is closed: the model got the prompt and sent this much.
    said = Decimal("0.000002") * (when == "middle")
    assert eventually(lambda: billed(app)) == ESTIMATED_PROMPT + said
    # No reservation is left: the next call gets the whole budget.
    app.connect(monthlyUsd=0.0201)
    upstream.script = good
    eventually(lambda: app.chat(**MODEL).status_code == 200)


def test_models_route_returns_the_upstreams_list(app: App, upstream: Upstream) -> None:
    assert app.http.get("/models", headers=app.auth).json() == upstream.models


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("fake/model", True),
        ("fake/model:nitro", True),
        ("fake/model:floor:online", True),
        ("models/fake/model", True),
        ("fake/model:free", False),
        ("nitro", False),
    ],
)
def test_one_model_is_found_under_each_name_that_can_be_called(
    app: App, upstream: Upstream, name: str, found: bool
) -> None:
    answer = app.http.get(f"/models/{name}", headers=app.auth)
    assert (answer.status_code == 200) is found is (app.chat(model=name).status_code == 200)
    if found:
        assert answer.json() == {**upstream.models["data"][0], "id": name}


def test_unreachable_upstream_is_a_failure(tmp_path) -> None:
    with run_service(tmp_path, "--upstream", f"http://127.0.0.1:{refused_port()}/v1") as service:
        app = service.app()
        app.connect()
        answer = app.chat(**MODEL)
        assert (answer.status_code, error_in(answer)) == (502, "upstream")
        assert "127.0.0.1" not in answer.text
        assert app.http.get("/models", headers=app.auth).status_code == 502
        app.close()


def test_operator_pays_with_ceilings(tmp_path, upstream: Upstream) -> None:
    key = "sk-operator-0123456789"
    env = {"WATTFARE_UPSTREAM_KEY": key}
    options = ("--upstream", upstream.url, "--user-ceiling-usd", "2.50")
    upstream.script = good
    upstream.calls.clear()
    with run_service(tmp_path, *options, env=env) as service:
        app = service.app()
        for limit, asked, cap in (
            ({}, {}, 2.5),
            ({}, {"monthlyUsd": None}, 2.5),
            ({"monthlyUsd": 1}, {"monthlyUsd": None}, 1),
            ({"monthlyUsd": 1}, {"monthlyUsd": 2}, 1),
            ({"monthlyUsd": 9}, {"monthlyUsd": 9}, 2.5),
            ({}, {"monthlyUsd": 0.5}, 0.5),
        ):
            headers = {"authorization": f"Bearer {app.token(**limit)}"}
            answer = app.http.post("/connections", json=asked, headers=headers)
            assert answer.json()["limits"] == {"monthlyUsd": cap}
        assert app.chat(**MODEL).status_code == 200
        assert upstream.calls[0].headers["authorization"] == f"Bearer {key}"
        # A publishable key is public, and this is the operator's money.
        grant = app.http.post(
            "/grants",
            json={"requests": 1},
            headers={"authorization": f"Bearer {app.keys.publishable_key}"},
        )
        assert (grant.status_code, error_in(grant)) == (403, "invalid_request")
        upstream.script = lambda exchange: exchange.answer({}, status=401)
        assert error_in(app.chat(**MODEL)) == "upstream"
        app.close()
        service.stop()
        assert not any(key in line for line in service.log)
        assert any("operator's key" in line for line in service.log)
    # A lowered ceiling also applies to caps that were set before.
    options = ("--upstream", upstream.url, "--user-ceiling-usd", "0.25")
    with run_service(tmp_path, *options, env=env) as service:
        app.service = service
        app.__post_init__()
        assert app.status()["limits"] == {"monthlyUsd": 0.25}
        app.close()


def test_events_without_an_empty_line_between_them(app: App, upstream: Upstream) -> None:
    """The stream also has a ping without data."""
    word = {"choices": [{"index": 0, "delta": {"content": "one "}}]}
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    chunks = [chunk_of(word), chunk_of({"choices": [], "usage": usage})]
    lines = [f"data: {json.dumps(chunk)}\n" for chunk in chunks]

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(b"data:\n\n")
        exchange.chunk("".join([*lines, "data: [DONE]\n\n"]).encode())
        exchange.send(b"0\r\n\r\n")

    upstream.script = script
    answer = app.chat(**MODEL, stream=True)
    received = events_of(answer.text)
    assert [json.loads(each) for each in received[:-1]] == [chunks[0]]
    assert received[-1] == "[DONE]"
    assert billed(app) == Decimal("0.000007")
