"""Each log line is one of our records. The log holds no upstream text, no prompt and no forged
line."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drivers import INFERENCE, JSON
from support.fake_wattfare import FakeWattfare
from support.service import App, Service, bearer, chat_body, run_service
from support.upstream import Exchange, Upstream, run_upstream

from wattfare_mw.errors import WattfareError, make_error
from wattfare_mw.logs import ProcessFormatter, describe, get_logger, one_line

PROMPT = "the prompt of joan"
FORGED = "\n2026-01-01 00:00:00,000 ERROR wattfare_mw.service forged\r\n\x1b[31m\u2028\u202e"
RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+ .*")


def words(exchange: Exchange) -> str:
    """An upstream answer that repeats the prompt."""
    text = exchange.json["messages"][0]["content"]
    return f"I cannot answer {text!r}{FORGED}: {text}"


def as_error(status: int) -> Callable[[Exchange], None]:
    def script(exchange: Exchange) -> None:
        exchange.answer({"error": {"message": words(exchange)}}, status=status)

    return script


def in_200(exchange: Exchange) -> None:
    exchange.answer({"error": {"message": words(exchange), "code": 502}})


def no_json(exchange: Exchange) -> None:
    exchange.answer(f"<html>{words(exchange)}")


def in_stream(exchange: Exchange) -> None:
    exchange.start_stream()
    exchange.word("one ")
    exchange.event({"error": {"message": words(exchange), "code": 500}})


def broken_event(exchange: Exchange) -> None:
    exchange.start_stream()
    exchange.event(f"{{{PROMPT}")


def broken_head(exchange: Exchange) -> None:
    exchange.send(f"HTTP/1.1 {PROMPT}\r\n{PROMPT}\r\n\r\n".encode())
    exchange.reset()


def bad_cookie(exchange: Exchange) -> None:
    headers = {"set-cookie": f"{PROMPT}@(=;{PROMPT}", "x-header": PROMPT}
    exchange.answer({"error": {"message": words(exchange)}}, status=500, headers=headers)


def bad_length(exchange: Exchange) -> None:
    exchange.answer("{}", headers={"content-length": PROMPT})


def bad_reason(exchange: Exchange) -> None:
    exchange.send(f"HTTP/1.1 500 {PROMPT}\r\ncontent-length: 2\r\n\r\n{{}}".encode())


SCRIPTS = {
    **{f"status {status}": as_error(status) for status in (400, 401, 403, 429, 500, 503)},
    **{
        script.__name__: script
        for script in (
            *(in_200, no_json, in_stream, broken_event),
            *(broken_head, bad_cookie, bad_length, bad_reason),
        )
    },
}


def records_of(service: Service) -> str:
    """Parses the log and checks that each line is a record."""
    log = "".join(service.log)
    for line in log.splitlines():
        assert RECORD.fullmatch(line), line
    assert "\x1b" not in log
    assert not re.search(r"^\S+ \S+ ERROR \S+ forged", log, re.MULTILINE)
    return log


@pytest.mark.parametrize("level", ["info", "debug"])
def test_service_log_holds_no_upstream_text(tmp_path: Path, level: str, watch: Any) -> None:
    with (
        run_upstream() as upstream,
        run_service(tmp_path, "--upstream", upstream.url, "--log-level", level) as service,
        watch(service, "fake/model"),
    ):
        with service.app() as app:
            app.connect(monthlyUsd=100)
            for script in SCRIPTS.values():
                upstream.script = script
                for stream in (False, True):
                    answer = app.chat(PROMPT, model="fake/model", stream=stream)
                    assert answer.status_code != 500
            _send_forged_fields(app, upstream)
        upstream.failures.clear()
    log = records_of(service)
    assert "WARNING" in log
    assert "The upstream failed (500)." in log
    assert PROMPT not in log
    assert "cannot answer" not in log


def _send_forged_fields(app: App, upstream: Upstream) -> None:
    upstream.script = as_error(500)
    headers = {**app.auth, "x-wattfare-user": "u%0A1", "x-request-id": "a b"}
    app.http.post("/chat/completions", json=chat_body(PROMPT), headers=headers)
    app.chat(PROMPT, model=f"fake/model{FORGED}")
    for path in ("/a%0Ab", "/%1b[31m", "/status?appUserId=%0A"):
        assert app.http.get(path, headers=app.auth).status_code in (200, 400, 404)
    assert app.http.get("/connections", headers=bearer("x.y.z")).status_code == 401


def test_failed_model_list_logs_no_upstream_text(tmp_path: Path) -> None:
    with run_upstream() as upstream:
        error = {"error": {"message": f"{PROMPT}{FORGED}"}}
        upstream.models_script = lambda exchange: exchange.answer(error, status=500)
        with (
            run_service(tmp_path, "--upstream", upstream.url) as service,
            service.app() as app,
        ):
            assert app.http.get("/models", headers=app.auth).status_code == 502
    assert PROMPT not in records_of(service)
    assert "list of models cannot be read: upstream 502" in "".join(service.log)


# -- the middleware


@pytest.fixture
def log() -> Any:
    """The middleware's log, as a usual handler writes it."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("wattfare_mw")
    logger.addHandler(handler)
    level, logger.level = logger.level, logging.DEBUG
    yield stream.getvalue
    logger.removeHandler(handler)
    logger.setLevel(level)


def lines(text: str) -> list[str]:
    assert "forged" in text or PROMPT not in text
    assert not re.search(r"^\S+ \S+ ERROR \S+ forged", text, re.MULTILINE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u2028\u202e]", text)
    return text.splitlines()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 401, 402, 403, 500, 502])
def test_middleware_log_holds_no_text_of_the_service(
    drive: Any, fake: FakeWattfare, log: Any, status: int, stream: bool
) -> None:
    error = {"error": {"code": "upstream", "message": f"{PROMPT}{FORGED}"}}
    fake.script = lambda exchange: exchange.answer(error, status=status)
    body = b'{"model": "m", "messages": [], "stream": %s}' % (b"true" if stream else b"false")
    drive(resolve_user=lambda _: "u1").request("POST", INFERENCE, JSON, body)
    assert PROMPT not in "".join(lines(log()))
    for line in lines(log()):
        assert RECORD.fullmatch(line), line


@pytest.mark.parametrize("path", [INFERENCE, "/api/wattfare-token", "/api/wattfare/status"])
def test_error_of_the_app_forges_no_log_line(drive: Any, log: Any, path: str) -> None:
    def resolve_user(_: Any) -> str:
        raise ValueError(f"no such cookie{FORGED}")

    method = "GET" if path.endswith("status") else "POST"
    answer = drive(resolve_user=resolve_user).request(method, path, JSON, b"{}")
    assert answer.status == 500
    text = log()
    assert lines(text)
    assert "in resolve_user" in text
    assert r"ValueError: no such cookie\n2026-01-01" in text


def test_browser_input_forges_no_log_line(drive: Any, fake: FakeWattfare, log: Any) -> None:
    model = "m" * 250
    body = b'{"model": "%s", "messages": []}' % model.encode()
    driver = drive(resolve_user=lambda _: f"u{FORGED}")
    driver.request("POST", INFERENCE, {**JSON, "x-request-id": "a\x85b"}, body)
    [line] = lines(log())
    assert len(line) < 1000


# -- the rule itself


@given(st.text())
def test_one_line_returns_a_single_printable_line(text: str) -> None:
    assert one_line(text).isprintable()
    assert len(one_line(text).splitlines()) <= 1


def test_describe_leaves_out_messages_of_others() -> None:
    assert PROMPT not in describe(make_error("upstream", PROMPT))
    error = WattfareError("It broke.", code="upstream", status=502)
    error.__cause__ = sqlite3.OperationalError(PROMPT)
    error.__cause__.__cause__ = ConnectionRefusedError(111, PROMPT)
    assert describe(error) == (
        "upstream 502: It broke. cause=OperationalError"
        " < ConnectionRefusedError(ECONNREFUSED: Connection refused)"
    )


@pytest.mark.parametrize("name", ["asyncio", "httpx", "aiohttp.client", "uvicorn.error"])
def test_log_records_of_other_packages_hold_no_messages(name: str) -> None:
    formatter = ProcessFormatter()
    try:
        raise ValueError(PROMPT)
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
        record = logging.LogRecord(
            name, logging.ERROR, "f", 1, f"It failed: %s{FORGED}", (PROMPT,), info
        )
    line = formatter.format(record)
    assert line.isprintable()
    assert PROMPT not in line
    assert "error=ValueError at=" in line


def test_traceback_of_the_service_shows_places_and_no_messages() -> None:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    logger = get_logger("wattfare_mw.service", show_messages=False)
    logger.addHandler(handler)
    try:
        raise KeyError(PROMPT)
    except KeyError:
        logger.exception("call failed request_id=%s", "r1")
    finally:
        logger.removeHandler(handler)
    [line] = stream.getvalue().splitlines()
    assert line.startswith("call failed request_id=r1 error=KeyError at=")
    assert "test_log_lines.py" in line
    assert PROMPT not in line
