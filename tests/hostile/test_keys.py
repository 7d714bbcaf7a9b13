"""Keys with white space around them, as in files and dashboards, and keys that cannot be sent in a
header."""

from __future__ import annotations

from typing import Any

import pytest
from support.cli import invoke_cli
from support.service import run_service
from support.upstream import Exchange, Upstream, run_upstream
from support.wire import STATUS, json_answer, run_wire

from wattfare_mw import AsyncWattfare, Wattfare, WattfareAuthError
from wattfare_mw.errors import WattfareError
from wattfare_mw.service import Settings

KEY = "sk-or-v1-0123456789abcdef"
SECRET = "sk_test_app_0123456789abcdef"
AROUND = ["{}\n", "{}\r\n", "  {}", "\t{} \n\n", "\u00a0{}\u2028"]
BROKEN = ["{}\n{}", "{} {}", "{}\0", "{}\u00e9", "\u201c{}\u201d", "{}\x7f", "{}\r\nx: y"]
NAMES = ["WATTFARE_UPSTREAM_KEY", "--upstream-key"]


@pytest.mark.parametrize("written", AROUND)
@pytest.mark.parametrize("cls", [Wattfare, AsyncWattfare])
def test_white_space_around_a_secret_key_is_accepted(cls: Any, written: str) -> None:
    assert cls(written.format(SECRET))._runner.caller.secret_key == SECRET


def test_secret_key_is_sent_without_white_space() -> None:
    with run_wire() as wire, Wattfare(f"{SECRET}\n", base_url=wire.url) as client:
        wire.then(json_answer(STATUS))
        client.user("u").status()
        assert wire.seen[0].headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("written", BROKEN)
@pytest.mark.parametrize("cls", [Wattfare, AsyncWattfare])
def test_secret_key_that_cannot_be_sent_in_a_header_is_refused(
    cls: Any, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATTFARE_SECRET_KEY", "")
    with pytest.raises(WattfareAuthError, match="WATTFARE_SECRET_KEY") as caught:
        cls(written.format(SECRET, SECRET))
    assert "0123" not in str(caught.value)


def test_upstream_key_is_sent_without_white_space(tmp_path) -> None:
    with run_upstream() as upstream:
        options = ("--upstream", upstream.url, "--user-ceiling-usd", "none")
        env = {"WATTFARE_UPSTREAM_KEY": f"{KEY}\n"}
        with run_service(tmp_path, *options, env=env) as service, service.app() as app:
            app.connect(monthlyUsd=1)
            assert app.chat(model="fake/model").status_code == 200
            assert _keys(upstream) == {f"Bearer {KEY}"}
            # Without its white space, the key is also removed from the upstream's answers.
            upstream.script = _repeats
            assert KEY not in app.chat(model="fake/model").text


def _keys(upstream: Upstream) -> set[str]:
    return {call.headers["authorization"] for call in upstream.calls}


def _repeats(exchange: Exchange) -> None:
    exchange.answer({"error": {"message": exchange.headers["authorization"]}}, status=400)


@pytest.mark.parametrize("written", [*BROKEN, "\n"])
def test_upstream_key_that_cannot_be_sent_in_a_header_is_refused(written: str) -> None:
    with pytest.raises(WattfareError, match="--upstream-key") as caught:
        Settings(upstream="https://host.test/v1", upstream_key=written.format(KEY, KEY))
    assert caught.value.code == "invalid_request"
    assert "0123" not in str(caught.value)


@pytest.mark.parametrize("written", ["{}\n{}", "{}\u00e9"])
def test_command_names_the_option_and_never_the_key(tmp_path, written: str) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    options = ("--upstream", "https://host.test/v1", "--user-ceiling-usd", "none")
    env = {"WATTFARE_UPSTREAM_KEY": written.format(KEY, KEY)}
    answer = invoke_cli("serve", "--database", database, *options, env=env)
    assert answer.exit_code != 0
    for name in NAMES:
        assert name in answer.output
    assert "0123" not in answer.output
    assert "Traceback" not in answer.output
