"""Requests as apps send them, rendered by the templates of common models and counted by real
tokenizers. The bound is above the counts, but not far above."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples
from support.prompts import TEMPLATES, corpus, render, tools

from wattfare_mw.service.chat import prompt_bound, tokenizer
from wattfare_mw.service.chat.json_length import _LINE_TOKENS, json_tokens

OPENAI = ("o200k_base", "cl100k_base")
LONG = "some words " * 200
Counter = Callable[[str], int]


@pytest.fixture(scope="module", autouse=True)
def _tokenizers() -> None:
    """Loads tokenizers here rather than at collection: it takes half a second."""
    pytest.importorskip("bpe_openai")


@cache
def requests() -> list[tuple[str, dict[str, Any]]]:
    """The whole corpus. It is built when a test first needs it."""
    return list(corpus())


@cache
def openai_counter(name: str) -> Counter:
    import bpe_openai

    encoding = bpe_openai.get_encoding(name)
    return lambda text: len(encoding.encode_ordinary(text))


@pytest.fixture(scope="module")
def counters() -> dict[str, Counter]:
    """Real tokenizers whose vocabularies are in packages. ``voyage3_base`` is Qwen's."""
    return {name: openai_counter(name) for name in (*OPENAI, "voyage3_base")}


def test_corpus_has_two_hundred_requests() -> None:
    assert len(requests()) == len({name for name, _ in requests()}) >= 200


@pytest.mark.parametrize("html", [False, True])
@pytest.mark.parametrize(("number", "template"), list(enumerate(TEMPLATES)))
def test_no_template_exceeds_the_bound_of_a_request(
    counters: dict[str, Counter], number: int, template: str, html: bool
) -> None:
    # One request in eight, others for each template; `make test-long` tries them all.
    some = slice((2 * number + html) % 8, None, 8) if examples.FACTOR <= 1 else slice(None)
    for name, request in requests()[some]:
        bound = prompt_bound.bound(request)
        written = render(template, request, html=html)
        for tokenizer_name, count in counters.items():
            assert count(written) <= bound, (name, tokenizer_name)


@pytest.mark.parametrize("encoding", OPENAI)
def test_tokenizer_count_is_a_tight_bound(counters: dict[str, Counter], encoding: str) -> None:
    """OpenAI's models read tools as TypeScript."""

    def bound(request: dict[str, Any]) -> int:
        return min(
            tokenizer.tokens(encoding, request, request["messages"]), prompt_bound.bound(request)
        )

    count = counters[encoding]
    # Every other request; `make test-long` tries them all.
    some = [request for _, request in requests()[:: 2 if examples.FACTOR <= 1 else 1]]
    found = [bound(request) / count(render("typescript", request, html=False)) for request in some]
    assert min(found) >= 1
    # The text around a short prompt is a large part of it.
    assert statistics.median(found) <= 2.5
    long = [
        ratio for ratio, request in zip(found, some, strict=True) if len(json.dumps(request)) > 4000
    ]
    assert statistics.median(long) <= 1.5


def test_bound_of_sixty_tools_is_close_to_their_bytes(counters: dict[str, Counter]) -> None:
    """The tools are 71 kB. An earlier bound was 151,700 tokens."""
    request = {"messages": [{"role": "user", "content": "x"}], "tools": tools(60)}
    compact = len(json.dumps(request["tools"], separators=(",", ":")))
    bound = prompt_bound.bound(request)
    assert compact < bound < 1.5 * compact
    indented = json.dumps(request["tools"], indent=4)
    assert bound < len(indented)
    for count in counters.values():
        assert count(indented) <= bound


@pytest.mark.parametrize("line", ['{{\n{}"a"', ',\n{}"type"', "[\n{}{{", "\n{}}}", "x\n{}y"])
def test_line_break_with_indentation_is_a_few_tokens(
    counters: dict[str, Counter], line: str
) -> None:
    for count in counters.values():
        for depth in range(65):
            spaces = " " * (4 * depth)
            alone = count(line.partition("\n")[0].format()) if line[0] != "\n" else 0
            behind = count(line.partition("{}")[2].format())
            assert count(line.format(spaces)) - alone - behind <= _LINE_TOKENS[depth]


@pytest.mark.parametrize(
    ("model", "measured"),
    [
        ("Llama 2", {0: 1, 4: 2, 16: 3, 32: 4, 64: 6, 100: 8, 128: 10, 200: 14, 256: 18}),
        ("Gemma 3", {0: 1, 4: 2, 16: 2, 32: 3, 64: 4, 100: 5, 128: 6, 200: 8, 256: 10}),
        ("Tekken", {0: 1, 4: 2, 16: 2, 32: 2, 64: 2, 100: 3, 128: 3, 200: 5, 256: 5}),
        ("Llama 3, Qwen 3, DeepSeek 3", {0: 1, 4: 2, 64: 2, 100: 3, 200: 4, 256: 4}),
        ("Claude 2", {0: 1, 4: 1, 64: 1, 100: 2, 200: 2, 256: 3}),
    ],
)
def test_bound_of_line_breaks_with_indentation(model: str, measured: dict[int, int]) -> None:
    """Measured with tokenizers that are not in the test dependencies."""
    assert all(tokens <= _LINE_TOKENS[spaces // 4] for spaces, tokens in measured.items())


names = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=30,
)


@given(values)
def test_no_json_notation_has_more_tokens(value: Any) -> None:
    import jinja2
    from jinja2.utils import htmlsafe_json_dumps

    assert jinja2.__version__
    written = [
        json.dumps(value),
        json.dumps(value, ensure_ascii=False),
        json.dumps(value, indent=4),
        json.dumps(value, indent=2, ensure_ascii=False),
        str(htmlsafe_json_dumps(value, indent=4)),
    ]
    for name in OPENAI:
        count = openai_counter(name)
        assert max(map(count, written)) <= json_tokens(value)


@settings(deadline=None)
@given(st.text(max_size=300), st.sampled_from(OPENAI), st.integers(1, 40))
def test_text_in_pieces_has_no_fewer_tokens(text: str, encoding: str, piece: int) -> None:
    readable = text.encode("utf-8", "replace").decode()
    whole = openai_counter(encoding)(readable)
    assert tokenizer.count(encoding, text) == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_PIECE", piece)
        assert tokenizer.count(encoding, text) >= whole


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("openai/gpt-4o-mini", "o200k_base"),
        ("gpt-4.1", "o200k_base"),
        ("gpt-5.5-pro:nitro", "o200k_base"),
        ("o3", "o200k_base"),
        ("openai/o4-mini-high", "o200k_base"),
        ("openai/gpt-oss-120b:free", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("ft:gpt-4o-mini-2024-07-18:acme::x", "o200k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        # Too new for the package to know it.
        ("gpt-6-astra", None),
        ("gpt-4.7", None),
        ("gpt-3.5-turbo-16k", "cl100k_base"),
        ("anthropic/claude-sonnet-4.5", None),
        ("qwen/qwen3-32b", None),
        ("fake/model", None),
        ("o", None),
        ("olmo-2", None),
    ],
)
def test_tokenizer_of_a_model(model: str, encoding: str | None) -> None:
    assert tokenizer.encoding_of(model) == encoding


def test_models_have_no_tokenizer_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "is_installed", lambda: False)
    assert tokenizer.encoding_of("gpt-4o") is None


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "thinking", "thinking": LONG, "text": "x"}]},
        {"role": "user", "content": [{"type": "tool_result", "content": LONG, "text": ""}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "kept": [LONG]}]},
        {"role": "user", "content": "x", "kept": LONG},
        {"role": LONG, "content": "x"},
    ],
)
def test_every_text_of_a_message_is_counted(message: dict[str, Any]) -> None:
    body = {"messages": [message]}
    assert tokenizer.tokens("o200k_base", body, body["messages"]) > tokenizer.count(
        "o200k_base", LONG
    )


def test_half_a_surrogate_pair_is_counted() -> None:
    assert tokenizer.count("o200k_base", "\ud83d" * 9) > 0
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}]}
    assert tokenizer.tokens("o200k_base", body, body["messages"]) > tokenizer.PER_CALL
