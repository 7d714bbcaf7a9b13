"""An upstream repeats the operator's key. It must not reach a client in any form."""

from __future__ import annotations

import base64
import html
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.patience import PATIENCE
from support.service import App, Service, chat_body, run_service
from support.upstream import Exchange, Upstream, chunk_of, completion_of, good, run_upstream

from wattfare_mw.service.models import upstream_errors
from wattfare_mw.service.models.credential import Credential
from wattfare_mw.service.models.redaction import MASK, Redactor

KEY = "sk-or-v1-7f3a/90be+5521cd=wxyz0123456789abcdef"
MODEL = {"model": "fake/model"}


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


#: The forms in which a text may contain a key.
FORMS = {
    "plain": KEY,
    "header": f"authorization: Bearer {KEY}",
    "glued": f"x{KEY}y",
    "quoted": repr({"Authorization": f"Bearer {KEY}"}),
    "percent": quote(KEY, safe=""),
    "percent twice": quote(quote(KEY, safe=""), safe=""),
    "html": html.escape(KEY).replace("-", "&#45;"),
    "json": "".join(f"\\u{ord(char):04x}" for char in KEY),
    "json in json": json.dumps(json.dumps({"key": KEY}).replace("/", "\\/")),
    "base64": in_base64(KEY),
    "basic": in_base64(f"user:{KEY}"),
    "basic, key first": in_base64(f"{KEY}:"),
    "base64 of a header": in_base64(f"Bearer {KEY}"),
    "urlsafe base64": base64.urlsafe_b64encode(KEY.encode()).decode(),
    "hex": KEY.encode().hex(),
    "upper case": KEY.upper(),
    "a part": KEY[:24] + "***",
    "the end": "***" + KEY[-16:],
    "spaced": " ".join(KEY),
    "broken over lines": "\n".join(KEY[place : place + 10] for place in range(0, len(KEY), 10)),
}


def leaks(text: str) -> set[str]:
    """The forms of the key that share eight letters or digits in a row with this text."""
    found: set[str] = set()
    letters = "".join(char for char in text.lower() if char.isalnum())
    for name in ("plain", "base64", "basic", "basic, key first", "base64 of a header", "hex"):
        form = "".join(char for char in FORMS[name].lower() if char.isalnum())
        # The first and last characters are the scheme and the user, not the key.
        secret = form[14:-4] if "base" in name else form[-36:]
        for place in range(len(secret) - 7):
            if secret[place : place + 8] in letters:
                found.add(name)
    return found


def test_leaks_detects_each_form() -> None:
    assert [name for name, form in FORMS.items() if not leaks(form)] == ["json"]


@pytest.fixture(scope="module")
def _paying(watch: Any) -> Iterator[tuple[Service, Upstream]]:
    import tempfile
    from pathlib import Path

    with (
        tempfile.TemporaryDirectory() as folder,
        run_upstream() as upstream,
        run_service(
            Path(folder),
            *("--upstream", upstream.url, "--user-ceiling-usd", "none"),
            env={"WATTFARE_UPSTREAM_KEY": KEY},
        ) as service,
        watch(service, "fake/model"),
    ):
        yield service, upstream


@pytest.fixture
def paying(_paying: tuple[Service, Upstream]) -> Iterator[tuple[App, Upstream]]:
    """An app of a service whose operator pays."""
    service, upstream = _paying
    upstream.reset()
    with service.app() as app:
        app.connect(monthlyUsd=100)
        yield app, upstream
    assert not leaks("".join(service.log))


def everything_in(app: App, **fields: Any) -> str:
    """Everything that a client gets of an answer."""
    answer = app.chat(**MODEL, **fields)
    return f"{answer.headers} {answer.text}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500, 503])
def test_error_that_repeats_the_header_hides_the_key(
    paying: tuple[App, Upstream], status: int, stream: bool
) -> None:
    app, upstream = paying

    def script(exchange: Exchange) -> None:
        assert exchange.headers["authorization"] == f"Bearer {KEY}"
        words = f"No: {exchange.headers['authorization']} is not welcome."
        headers = {"retry-after": KEY, "x-request-id": KEY, "www-authenticate": f"Bearer {KEY}"}
        exchange.answer({"error": {"message": words}}, status=status, headers=headers)

    upstream.script = script
    shown = everything_in(app, stream=stream)
    assert not leaks(shown)
    assert ("is not welcome" in shown) is (status not in (401, 402, 403))


@pytest.mark.parametrize("form", FORMS)
def test_error_hides_the_key_in_any_form(paying: tuple[App, Upstream], form: str) -> None:
    app, upstream = paying
    error = {"error": {"message": f"before {FORMS[form]} after", "code": 500}}
    upstream.script = lambda exchange: exchange.answer(error, status=500)
    shown = everything_in(app)
    assert "before " in shown
    assert " after" in shown
    assert not leaks(shown)


#: Bodies that an upstream may send with status 200. `…` stands for the message.
ODD_ERRORS = [
    {"error": "…"},
    {"error": {"message": "…"}},
    {"error": {"message": "…", "code": 401}},
    {"error": {"message": "…", "code": "402"}},
    {"error": {"message": "…", "code": "invalid_api_key"}},
    {"error": {"message": "…", "type": "authentication_error"}},
    {"error": {"message": "…", "status": "PERMISSION_DENIED"}},
    {"error": {"message": "…", "code": 502, "metadata": {"raw": "…"}}},
    {"error": {"message": {"text": "…"}}},
    {"error": ["…"]},
    {"error": {"…": "…"}},
    [{"error": {"message": "…"}}],
    {"detail": "…"},
    "…",
]


def words_in(value: Any, words: str) -> Any:
    return json.loads(json.dumps(value).replace("\\u2026", words))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("odd", ODD_ERRORS, ids=str)
def test_error_with_status_200_hides_the_key(
    paying: tuple[App, Upstream], odd: Any, stream: bool
) -> None:
    app, upstream = paying
    body = json.dumps(words_in(odd, f"The account of Bearer {KEY}"))
    upstream.script = lambda exchange: exchange.answer(body)
    shown = everything_in(app, stream=stream)
    assert not leaks(shown)
    about_account = any(word in body for word in ("401", "402", "api_key", "auth", "DENIED"))
    if about_account and "Bearer" in shown:
        pytest.fail(shown)


@pytest.mark.parametrize("odd", ODD_ERRORS, ids=str)
@pytest.mark.parametrize("place", ["first", "middle", "choice"])
def test_error_in_a_stream_hides_the_key(
    paying: tuple[App, Upstream], odd: Any, place: str
) -> None:
    app, upstream = paying

    def script(exchange: Exchange) -> None:
        error = words_in(odd, f"The account of Bearer {KEY}")
        exchange.start_stream()
        if place == "middle":
            exchange.word("one ")
        if place == "choice" and isinstance(error, dict):
            choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error", **error}
            error = chunk_of({"choices": [choice]})
        exchange.event(json.dumps(error))
        exchange.done()

    upstream.script = script
    shown = everything_in(app, stream=True)
    assert not leaks(shown)
    error = odd.get("error") if isinstance(odd, dict) else None
    codes = [error.get(name) for name in ("code", "type", "status")] if type(error) is dict else []
    if set(codes) & {401, "402", "invalid_api_key", "authentication_error", "PERMISSION_DENIED"}:
        assert "The account" not in shown
        assert "refuses the account of this service" in shown


@pytest.mark.parametrize("form", ["plain", "header", "base64", "basic", "basic, key first"])
def test_answer_hides_the_key(paying: tuple[App, Upstream], form: str) -> None:
    app, upstream = paying
    extra = {"debug": {"request": FORMS[form]}}

    def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            exchange.answer(completion_of("one", **extra))
            return
        exchange.start_stream()
        exchange.event(chunk_of({"choices": [{"delta": {"content": "one"}}], **extra}))
        exchange.event(json.dumps(chunk_of({"choices": [], **extra})).replace("/", "\\/"))
        exchange.done()

    upstream.script = script
    for stream in (False, True):
        shown = everything_in(app, stream=stream)
        assert '"content": "one"' in shown
        assert not leaks(shown)


@pytest.mark.parametrize("form", ["plain", "header", "base64"])
def test_comment_of_a_stream_hides_the_key(paying: tuple[App, Upstream], form: str) -> None:
    app, upstream = paying
    arrived = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(f": slow down, {FORMS[form]}\n\n".encode())
        assert arrived.wait(PATIENCE)  # the comment is not in one block with an event
        exchange.word("one")
        exchange.done()

    upstream.script = script
    shown = b""
    body = chat_body(stream=True, **MODEL)
    headers = app.paid_by("u1")
    with app.http.stream("POST", "/chat/completions", json=body, headers=headers) as answer:
        for piece in answer.iter_raw():
            shown += piece
            arrived.set()
    assert b"slow down" in shown
    assert b"[DONE]" in shown
    assert not leaks(shown.decode())


def test_moderation_error_keeps_its_code(paying: tuple[App, Upstream]) -> None:
    app, upstream = paying
    error = {"message": f"flagged ({KEY})", "code": 403, "metadata": {"reasons": ["violence"]}}
    upstream.script = lambda exchange: exchange.answer({"error": error}, status=403)
    answer = app.chat(**MODEL)
    assert answer.status_code == 403
    assert answer.json()["error"] == {"code": "invalid_request", "message": f"flagged ({MASK})"}


def test_answer_without_the_key_is_unchanged(paying: tuple[App, Upstream]) -> None:
    app, upstream = paying
    upstream.script = good
    assert "one two three" in everything_in(app)
    redactor = Redactor(KEY)
    data = b'{"content": "sk-or-v1- begins a key"}'
    assert redactor.answer(data) is data


@pytest.mark.parametrize("key", ["ollama", "none", "EMPTY", "x"])
def test_placeholder_key_is_not_removed_from_an_answer(key: str) -> None:
    data = f'{{"content": "I run on {key}."}}'.encode()
    assert Redactor(key).answer(data) == data
    header = f'{{"debug": "Bearer {key}"}}'.encode()
    assert Redactor(key).answer(header) == f'{{"debug": "{MASK}"}}'.encode()


@pytest.mark.parametrize("key", ["sk-up", "ollama", KEY])
def test_error_text_never_holds_a_key(key: str) -> None:
    for text in (key, f"a{key}b", f"Bearer {key}", quote(key, safe="").replace("-", "%2d")):
        assert key not in Redactor(key).text(text)
        assert quote(key, safe="") not in Redactor(key).text(text)
    assert Redactor(key).text("All is well.") == "All is well."


@given(st.text(max_size=30), st.sampled_from(sorted(FORMS)), st.text(max_size=30))
def test_key_is_removed_whatever_surrounds_it(before: str, form: str, after: str) -> None:
    assert not leaks(Redactor(KEY).text(before + FORMS[form] + after))


@given(st.sampled_from([401, 402, 403]), st.text(), st.booleans())
def test_account_errors_of_the_upstream_are_never_forwarded(
    status: int, words: str, as_code: bool
) -> None:
    error: dict[str, Any] = {"message": words, **({"code": status} if as_code else {})}
    body = json.dumps({"error": error}).encode()
    failure = upstream_errors.failure(500 if as_code else status, body, {}, Credential(KEY))
    assert isinstance(failure, upstream_errors.AccountRefusedError)
    assert (failure.code, failure.http_status) == ("upstream", 502)
    assert failure.upstream_code is None
    assert failure.message.startswith("The model's provider refuses the account of this service.")
