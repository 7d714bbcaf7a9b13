"""For any request, ASGI and WSGI give the same answer. It always follows the protocol and never
contains the secret key."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drivers import INFERENCE, JSON, KINDS, MODELS, STATUS, TOKEN, Answered, body_of
from support.examples import examples
from support.fake_wattfare import DONE, SECRET_KEY, USAGE, event, good, run_fake_wattfare, word

from wattfare_mw import AsyncWattfare, Wattfare

PATHS = [TOKEN, INFERENCE, STATUS, MODELS]


@pytest.fixture(scope="module")
def both() -> Iterator[Any]:
    """Both interfaces of one middleware, and the service."""
    with run_fake_wattfare() as fake:
        clients: dict[str, Any] = {
            "asgi": AsyncWattfare(SECRET_KEY, base_url=fake.url, max_retries=0),
            "wsgi": Wattfare(SECRET_KEY, base_url=fake.url, max_retries=0),
        }
        drivers = {
            name: kind(
                client=clients[name],
                resolve_user=resolve_user,
                request_limit=request_limit,
                models=["openai/*", "m"],
                allow_grants=True,
                allowed_origins=["https://other.example"],
                max_body_bytes=300,
                on_usage=lambda *args: None,
            )
            for name, kind in KINDS.items()
        }
        yield fake, drivers
        drivers["asgi"].loop.run(clients["asgi"].aclose())
        clients["wsgi"].close()
        for driver in drivers.values():
            driver.close()
        assert not fake.failures, fake.failures


def resolve_user(request: Any) -> Any:
    """Returns what the request's header asks for: an id, no user, an invalid value, or an error."""
    comparable = request.headers.get("x-user", "user_1")
    request.cookies, request.query  # noqa: B018  # which never raise
    if comparable == "raise":
        raise RuntimeError(SECRET_KEY)
    return {"nobody": None, "7": 7, "": ""}.get(comparable, comparable)


def request_limit(request: Any) -> Any:
    return {"x": "nonsense", "5": 5}.get(request.headers.get("x-limit", ""))


_TEXT = st.text(st.characters(max_codepoint=0xFF), max_size=12)
_SANE = {
    "content-type": st.sampled_from(["application/json", "text/plain", "application/json; a=\xfc"]),
    "content-length": st.sampled_from(["301", "9" * 30]),
    "origin": st.sampled_from(
        ["https://other.example", "https://evil.example", "null", "http://h"]
    ),
    "host": st.sampled_from(["h", "h:80", "[::1]:80", ""]),
    "sec-fetch-site": st.sampled_from(["same-origin", "cross-site", "none"]),
    "access-control-request-method": st.sampled_from(["POST", "GET"]),
    "access-control-request-headers": st.sampled_from(["x-a", "a\r\nb: c"]),
    "x-request-id": st.sampled_from(["r-1", "r 1", "\xff"]),
    "x-wattfare-grant": st.sampled_from(["gr_1", "", "a b", "\xfc"]),
    "x-wattfare-user": st.just("somebody"),
    "x-user": st.sampled_from(["nobody", "raise", "7", "", "\xfcser%"]),
    "x-limit": st.sampled_from(["x", "5"]),
    "idempotency-key": _TEXT,
    "accept": _TEXT,
    "traceparent": _TEXT,
    "cookie": _TEXT,
    "accept-encoding": st.just("gzip"),
    "connection": st.just("upgrade"),
    "authorization": st.just("Bearer x"),
}
_FIELD = st.sampled_from(sorted(_SANE)).flatmap(
    lambda name: st.tuples(st.just(name), st.one_of(_SANE[name], _SANE[name], _TEXT))
)
_HEADERS = st.builds(
    lambda fields, first: {**JSON, **dict(fields)} if first else {**dict(fields), **JSON},
    st.lists(_FIELD, max_size=4),
    st.booleans(),
)
_BODIES = st.one_of(
    *[st.builds(body_of, st.sampled_from(["m", "openai/x"]), stream=st.booleans())] * 3,
    st.binary(max_size=30),
    st.sampled_from(
        [b"", b"{}", b"[" * 300, body_of("m"), body_of("evil"), b'{"model":"m","model":"m"}']
    ),
    st.builds(body_of, st.sampled_from(["m", "openai/x", "evil", None, 7]), stream=st.booleans()),
    st.integers(290, 310).map(lambda size: body_of("m").ljust(size)),
)
_METHODS = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "post", "BREW", "\xff"])
_RIGHT = {TOKEN: "POST", INFERENCE: "POST", STATUS: "GET", MODELS: "GET"}
_TARGETS = st.one_of(
    st.sampled_from([*_RIGHT.items(), *[(INFERENCE, "POST")] * 6]),
    st.tuples(st.sampled_from(PATHS), _METHODS),
)


def _answers() -> st.SearchStrategy[Any]:
    """Scripts of the service, some valid and some not."""
    whole = st.builds(
        lambda body, status, kind: (
            lambda x: x.answer(
                # A successful answer is forwarded unchanged, whatever it contains.
                body if status >= 300 else body.replace(SECRET_KEY, ""),
                status=status,
                content_type=kind,
            )
        ),
        st.sampled_from(
            [
                json.dumps({"choices": [], "usage": USAGE}),
                json.dumps({"token": "t", "expiresAt": 1}),
                json.dumps({"connected": True, "usage": {"monthlyUsd": 1}}),
                json.dumps({"data": [{"id": "m"}, {"id": "evil"}]}),
                json.dumps({"error": {"code": "not_connected", "message": f"\xfc {SECRET_KEY}"}}),
                '{"error": {"code": 7}}',
                "<html>",
                "",
                "{",
                "[]",
            ]
        ),
        st.sampled_from([200, 200, 201, 299, 302, 400, 401, 402, 404, 429, 500, 503, 599]),
        st.sampled_from(["application/json", "text/html", "text/event-stream", None, "x/y; \x7f"]),
    )
    stream = st.lists(
        st.sampled_from([word("a"), word("b")[:-3], event({"choices": [], "usage": USAGE}), DONE]),
        max_size=4,
    ).map(lambda chunks: lambda x: x.stream(*chunks))
    return st.one_of(whole, stream, st.just(good), st.just(lambda x: x.hang_up()))


def comparable(answer: Answered) -> Any:
    """The answer without the parts that differ each time."""
    fields = answer.headers
    request_id, body = fields.pop("x-request-id"), answer.body
    if len(request_id) == 32:
        body = body.replace(request_id.encode(), b"new")
        request_id = "new"
    return answer.status, fields, request_id, body


@examples(400)
@given(
    target=_TARGETS,
    query=_TEXT,
    headers=_HEADERS,
    body=_BODIES,
    script=_answers(),
)
def test_asgi_and_wsgi_give_the_same_answer(
    both: Any, target: Any, query: str, headers: Any, body: bytes, script: Any
) -> None:
    fake, drivers = both
    path, method = target
    fake.script = script
    logged: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    logger, keep = logging.getLogger("wattfare_mw"), Keep()
    logger.addHandler(keep)
    logger.propagate = False
    # A server sets the length of a body that it has itself, and ignores the client's.
    if "content-length" in headers and not headers["content-length"].isdecimal():
        headers = {name: value for name, value in headers.items() if name != "content-length"}
    if int(headers.get("content-length") or 0) not in range(301):
        body = b""
    elif "content-length" in headers:
        headers = {**headers, "content-length": str(len(body))}
    try:
        answers = {}
        for name, driver in drivers.items():
            fake.forget_exchanges()
            answers[name] = driver.request(method, path, headers, body, query)
    finally:
        logger.removeHandler(keep)
        logger.propagate = True
    assert comparable(answers["asgi"]) == comparable(answers["wsgi"])
    answer = answers["asgi"]
    if answer.status >= 400 and method != "HEAD":
        assert answer.code
    if method == "HEAD":
        assert answer.body == b""
    for text in (*(f"{name}: {value}" for name, value in answer.fields), *logged):
        assert SECRET_KEY not in text
        assert "\n" not in text
        assert "\r" not in text
    assert SECRET_KEY.encode() not in answer.body
    for name, value in answer.fields:
        assert name == name.lower()
        assert value.isascii()
    if "content-length" in answer.headers and method != "HEAD":
        assert int(answer.headers["content-length"]) == len(answer.body)


@examples(150)
@given(
    path=st.text(st.characters(exclude_categories=["Cs"])).map(lambda rest: "/" + rest)
    | st.text("/apiwtre-:ok.n?%", max_size=25)
)
def test_other_paths_go_to_the_app(both: Any, path: str) -> None:
    _, drivers = both
    if path in PATHS:
        return
    for driver in drivers.values():
        answer = driver.request("POST", path)
        assert (answer.status, answer.body) == (200, b"the app: " + path.encode())
