"""The list of models that an app allows, and the ways around it."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.drivers import INFERENCE, JSON, MODELS, Drive, Driver
from support.examples import examples
from support.fake_wattfare import MODELS as LISTED
from support.fake_wattfare import FakeWattfare

from wattfare_mw.errors import WattfareError
from wattfare_mw.middleware import request_body

ALLOWED = ["openai/*", "anthropic/claude-sonnet-4", "x-ai/grok-[34]", "a?c"]


def ask(driver: Driver, body: bytes | str) -> tuple[int, str | None]:
    body = body.encode() if isinstance(body, str) else body
    answer = driver.request("POST", INFERENCE, JSON, body)
    return answer.status, None if answer.status == 200 else answer.code


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "openai/gpt-4o"}',
        '{"model": "openai/"}',
        '{"model": "anthropic/claude-sonnet-4"}',
        '{"model": "x-ai/grok-3"}',
        '{"model": "abc"}',
        '{"model": "openai/gpt-4o", "models": ["openai/o1", "x-ai/grok-4"]}',
        '{"model": "openai/gpt-4o", "models": []}',
        '{"model": "openai/gpt-4o", "models": null}',
        '{"models": ["openai/o1"]}',
        '{"model": null, "models": ["openai/o1"]}',
        r'{"m\u006fdel": "openai/gpt-4o"}',
        r'{"model": "\u006fpenai/gpt-4o"}',
        '{"model": "openai/gpt-4o", "messages": [{"model": "evil", "models": ["evil"]}]}',
        r'{"model": "openai/gpt-4o", "user": "\"model\": \"evil\""}',
        '{"model": "openai/gpt-4o", "x": "model", "y": ["model", "models", "model"]}',
    ],
)
def test_listed_model_is_allowed(drive: Drive, fake: FakeWattfare, body: str) -> None:
    assert ask(drive(models=ALLOWED), body) == (200, None)
    assert fake.next().body == body.encode()


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "evil"}',
        '{"model": "openai"}',
        '{"model": " openai/gpt-4o"}',
        '{"model": "OpenAI/gpt-4o"}',
        '{"model": "anthropic/claude-sonnet-4:free"}',
        '{"model": "anthropic/claude-sonnet-4\\n"}',
        '{"model": "xanthropic/claude-sonnet-4"}',
        '{"model": "x-ai/grok-34"}',
        '{"model": "abbc"}',
        '{"model": ""}',
        '{"model": "openai/gpt-4o", "models": ["evil"]}',
        '{"model": "openai/gpt-4o", "models": ["openai/o1", "evil"]}',
        '{"models": ["evil"]}',
        r'{"\u006dodel": "evil"}',
        r'{"model": "\u0065vil"}',
    ],
)
def test_unlisted_model_is_refused(drive: Drive, fake: FakeWattfare, body: str) -> None:
    assert ask(drive(models=ALLOWED), body) == (403, "invalid_request")
    assert not fake.exchanges


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"model": null}',
        '{"models": []}',
        '{"Model": "openai/gpt-4o"}',
        '{"model": "openai/gpt-4o", "model": "openai/gpt-4o"}',
        '{"model": "evil", "model": "openai/gpt-4o"}',
        '{"model": "openai/gpt-4o", "model": "evil"}',
        r'{"model": "evil", "\u006dodel": "openai/gpt-4o"}',
        r'{"\u006Dodel": "evil", "model": "openai/gpt-4o"}',
        r'{"model": "evil", "mode\u006c": "openai/gpt-4o"}',
        r'{"m\u006Fde\u006C": "evil", "\u006d\u006f\u0064\u0065\u006c": "openai/gpt-4o"}',
        '{"models": ["evil"], "model": "openai/gpt-4o", "models": ["openai/o1"]}',
        r'{"models": ["evil"], "model": "openai/gpt-4o", "model\u0073": []}',
        '{"model" : "evil" ,\n"model"\t: "openai/gpt-4o"}',
        '{"model":"evil","x":{"model":1},"model":"openai/gpt-4o"}',
        # Go's JSON reader treats these as one name, and keeps the last value.
        '{"model": "openai/gpt-4o", "Model": "evil"}',
        '{"MODELS": ["evil"], "model": "openai/gpt-4o"}',
        '{"model": "openai/gpt-4o", "model\u017f": ["evil"]}',
        r'{"model": "openai/gpt-4o", "model\u017f": ["evil"]}',
        r'{"model": "openai/gpt-4o", "\u004dodel": "evil"}',
    ],
)
def test_missing_or_repeated_model_is_refused(drive: Drive, fake: FakeWattfare, body: str) -> None:
    assert ask(drive(models=ALLOWED), body) == (400, "invalid_request")
    assert not fake.exchanges


def test_field_that_is_not_utf_8_is_refused(drive: Drive, fake: FakeWattfare) -> None:
    body = b'{"model": "openai/gpt-4o", "plugins": [{"model": "\xff"}]}'
    assert drive(models=ALLOWED).request("POST", INFERENCE, JSON, body).status == 400
    assert not fake.exchanges


FUNCTION = {"name": "f", "parameters": {"properties": {"model": {"enum": ["x"]}}}}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"preset": "x"}, 403),
        ({"preset": None}, 200),
        ({"model": "openai/gpt-4o@preset/x"}, 403),
        ({"plugins": [{"id": "auto-router", "allowed_models": ["evil"]}]}, 403),
        ({"plugins": [{"id": "auto-router", "allowed_models": ["openai/o1"]}]}, 200),
        ({"plugins": [{"id": "fusion", "type": "function", "judge": {"model": "evil"}}]}, 403),
        ({"plugins": [{"id": "web", "max_results": 1}]}, 200),
        ({"tools": [{"type": "openrouter:advisor", "parameters": {"model": "evil"}}]}, 403),
        ({"tools": [{"type": "function", "function": FUNCTION}]}, 200),
        ({"compound_custom": {"models": {"answering_model": "evil"}}}, 403),
        ({"moderation": {"model": "evil"}}, 403),
        ({"safety_model": "evil"}, 403),
        ({"draft_model": "evil"}, 403),
        ({"draft_model": "openai/o1"}, 200),
        ({"providerOptions": {"gateway": {"models": ["evil"]}}}, 403),
        ({"providerOptions": {"gateway": {"models": ["openai/o1"], "order": ["azure"]}}}, 200),
        ({"provider_options": {"gateway": {"Models": ["evil"]}}}, 403),
        ({"context_management": {"edits": [{"summary_model": "evil"}]}}, 403),
        ({"not_known_yet": [{"fallbackModels": {"first": "evil"}}]}, 403),
        ({"fallback_model": ["evil"]}, 403),
        ({"metadata": {"model": "of a car"}}, 200),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": FUNCTION}}}, 200),
        ({"messages": [{"role": "user", "content": "model", "model": "x"}]}, 200),
    ],
    ids=str,
)
def test_models_in_other_fields_are_checked(
    drive: Drive, fake: FakeWattfare, fields: dict[str, Any], status: int
) -> None:
    body = json.dumps({"model": "openai/gpt-4o", **fields})
    assert ask(drive(models=ALLOWED), body)[0] == status
    assert len(fake.exchanges) == (status == 200)


@pytest.mark.parametrize("form", ["\\u{:04x}", "\\u{:04X}"])
@pytest.mark.parametrize("name", ["model", "models", "MODELS", "model\u017f"])
def test_escaped_letter_in_a_name_is_read(name: str, form: str) -> None:
    for position, letter in enumerate(name):
        spelled = name[:position] + form.format(ord(letter)) + name[position + 1 :]
        value = '"evil"' if name == "model" else '["evil"]'
        own = "" if name == "model" else '"models":[],'
        for body in (
            f'{{"{spelled}":{value},{own}"model":"openai/x"}}',
            f'{{{own}"model":"openai/x","{spelled}":{value}}}',
        ):
            assert refused(body.encode()) == 400, body


def test_empty_list_allows_no_model(drive: Drive, fake: FakeWattfare) -> None:
    driver = drive(models=[])
    for model in ("", "a", "*", "None"):
        assert ask(driver, json.dumps({"model": model})) == (403, "invalid_request")
    assert driver.request("GET", MODELS).json == {"data": []}
    assert [exchange.path for exchange in fake.exchanges] == ["/models"]


def test_any_model_is_allowed_without_a_list(drive: Drive, fake: FakeWattfare) -> None:
    driver = drive()
    for body in ('{"model": "evil", "model": "x"}', "{}", '{"models": ["evil"]}'):
        assert ask(driver, body) == (200, None)
        assert fake.next().body == body.encode()


@pytest.mark.parametrize("models", ["openai/*", b"openai/*", [1], [None], 7, [b"openai/*"]])
def test_invalid_list_raises_at_start(drive: Drive, models: Any) -> None:
    with pytest.raises(TypeError):
        drive(models=models)


# -- the list that the browser sees


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_model_list_is_filtered(drive: Drive, fake: FakeWattfare, method: str) -> None:
    answer = drive(models=["openai/*"]).request(method, MODELS)
    assert answer.status == 200
    if method == "GET":
        assert answer.json == {"data": [one for one in LISTED["data"] if "openai" in one["id"]]}
        assert b'"prompt":"0.0000025"' in answer.body.replace(b" ", b"")
    else:
        assert answer.body == b""
        assert int(answer.headers["content-length"]) > 50


def test_star_lists_all_models(drive: Drive, fake: FakeWattfare) -> None:
    fake.script = lambda x: x.answer({**LISTED, "object": "list", "more": [1.50]})
    answer = drive().request("GET", MODELS)
    assert answer.json == {**LISTED, "object": "list", "more": [1.5]}


def test_model_list_requires_a_user(drive: Drive, fake: FakeWattfare) -> None:
    anonymous = {"resolve_user": lambda request: None}
    answer = drive(**anonymous).request("GET", MODELS)
    assert (answer.status, answer.code) == (401, "auth")
    assert not fake.exchanges
    assert drive(**anonymous, allow_grants=True).request("GET", MODELS).status == 200


@pytest.mark.parametrize(
    "listing",
    [
        "[]",
        "{}",
        '{"data": {}}',
        '{"data": [{"name": "x"}]}',
        '{"data": [1]}',
        "<html>",
        "",
        "null",
    ],
)
def test_invalid_model_list_of_the_service_is_502(
    drive: Drive, fake: FakeWattfare, listing: str
) -> None:
    fake.script = lambda exchange: exchange.answer(listing)
    answer = drive(models=["openai/*"]).request("GET", MODELS)
    assert (answer.status, answer.code) == (502, "unknown")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(drive: Drive, method: str) -> None:
    answer = drive().request(method, MODELS)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


# -- any body: no reader of it may find a model that is not allowed


def readings(body: bytes) -> Iterator[dict[str, Any]]:
    """All ways in which JSON readers may take a body: the first or last of two equal names; names
    as they are or in any case; and lenient readers, which accept invalid JSON."""
    for fold in (str, str.casefold):

        def last(pairs: list[tuple[str, Any]], fold: Any = fold) -> dict[str, Any]:
            return {fold(name): value for name, value in pairs}

        def first(pairs: list[tuple[str, Any]], fold: Any = fold) -> dict[str, Any]:
            return {fold(name): value for name, value in reversed(pairs)}

        for hook in (first, last):
            try:
                text = body.decode("utf-8-sig", "surrogateescape")
                found = json.loads(text, object_pairs_hook=hook, strict=False)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found


def named(reading: dict[str, Any]) -> Iterator[str]:
    if isinstance(reading.get("model"), str):
        yield reading["model"]
    models = reading.get("models")
    yield from [one for one in models if isinstance(one, str)] if isinstance(models, list) else []


def allowed(model: str) -> bool:
    return any(fnmatch.fnmatchcase(model, pattern) for pattern in ALLOWED)


def _escape(text: str, choices: list[int]) -> str:
    """``text`` as a JSON string, with each character in one of its notations."""
    written = []
    for position, char in enumerate(text):
        way = choices[position % len(choices)] if choices else 0
        code = ord(char)
        if way == 0 or code > 0xFFFF:
            written.append(json.dumps(char, ensure_ascii=False)[1:-1])
        else:
            form = ("\\u{:04x}", "\\u{:04X}")[way % 2]
            written.append(form.format(code))
    return '"' + "".join(written) + '"'


_NAME = st.sampled_from(
    [
        "model",
        "models",
        "model",
        "Model",
        "MODELS",
        "model\u017f",
        "x",
        "stream",
        "model\x00",
        " model",
    ]
)
_ID = st.sampled_from(["openai/gpt-4o", "evil", "evil", "abc", "", "openai/\n", "evil/openai/x"])
_WAYS = st.lists(st.integers(0, 2), max_size=3)
_STRING = st.builds(_escape, _ID, _WAYS)
_VALUE = st.one_of(
    _STRING,
    _STRING,
    st.lists(_STRING, max_size=3).map(lambda items: f"[{','.join(items)}]"),
    st.builds(lambda n, v: f"{{{n}:{v}}}", st.builds(_escape, _NAME, _WAYS), _STRING),
    st.sampled_from(["null", "1", "true", "1e999", "NaN", '"\\ud800"', '"\t"', '"\\"model\\":"']),
)
_FIELD = st.builds(
    lambda name, gap, value: f"{name}{gap}:{value}",
    st.builds(_escape, _NAME, _WAYS),
    st.sampled_from(["", " ", "\n\t"]),
    _VALUE,
)
_BODY = st.one_of(
    st.lists(_FIELD, max_size=5).map(lambda fields: "{" + ",".join(fields) + "}"),
    st.lists(_FIELD, max_size=3).map(lambda fields: "\ufeff{" + ",".join(fields) + "}"),
    st.lists(_FIELD, max_size=3).map(lambda fields: "{" + ",".join(fields) + ",}"),
    st.lists(_FIELD, max_size=3).map(lambda fields: "{" + ",".join(fields) + "}{}"),
    st.text(alphabet='{}[]",:\\u006d model', max_size=40),
)

_LIST = request_body.Models(ALLOWED)


def refused(body: bytes) -> int | None:
    """The status of the refusal of this body, or None."""
    try:
        _LIST.check(body, request_body.read_body(body))
    except WattfareError as error:
        return error.status
    return None


@examples(500)
@given(body=_BODY)
@example(body='{"model":"openai/gpt-4o","\\u006dodel":"evil"}')
def test_no_reader_finds_an_unlisted_model_in_a_forwarded_body(body: str) -> None:
    sent = body.encode()
    if (status := refused(sent)) is not None:
        assert status in (400, 403)
        return
    found = [model for reading in readings(sent) for model in named(reading)]
    assert found, sent
    assert all(allowed(model) for model in found), sent


@examples(100)
@given(
    model=_ID.filter(allowed),
    fields=st.dictionaries(st.text(), st.text() | st.dictionaries(st.text(), _ID), max_size=4),
    escaped=st.booleans(),
)
def test_ordinary_body_is_not_refused(model: str, fields: Any, escaped: bool) -> None:
    known = {"stream", "stream_options", "preset"}
    fields = {
        name: value
        for name, value in fields.items()
        if name not in known and "model" not in json.dumps({name: value}).casefold()
    }
    text = json.dumps({**fields, "model": model}, ensure_ascii=escaped)
    try:
        sent = text.encode()
    except UnicodeEncodeError:
        return
    assert refused(sent) is None
