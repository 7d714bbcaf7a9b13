"""`wattfare demo`, as a newcomer runs it."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from support.service import obey_ctrl_c

from wattfare_mw.cli import demo as demo_module
from wattfare_mw.cli.commands import cli

PATIENCE = 120


def test_failed_step_is_reported_and_exits_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module._Story, "_cost", staticmethod(lambda: demo_module.CAP_USD / 2))
    run = CliRunner().invoke(cli, ["demo"])
    assert run.exit_code == 1
    assert "Flask: it cost" in run.output


def test_demo_output_and_curl_lines_of_keep_work() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "wattfare_mw.cli", "demo", "--keep"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=obey_ctrl_c,
    )
    assert process.stdout is not None
    try:
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C stops it" in line:
                break
        text = "".join(lines)
        check_demo_output(text)
        script = [line for line in lines if line.startswith(("curl", "TOKEN="))]
        assert len(script) == 4, text
        played = subprocess.run(
            ["bash", "-ec", "\n".join(script)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert played.returncode == 0, played.stderr
        assert '"connected":true' in played.stdout
        assert "data: [DONE]" in played.stdout
        # Three words sent, three returned.
        assert '"remainingUsd":0.999991' in played.stdout
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE)
        process.stdout.close()
    assert code == 0
    for port in set(re.findall(r"http://127\.0\.0\.1:(\d+)", text)):
        _wait_closed(int(port))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--web", "--keep"], 2, "not both"),
        (["--framework", "flask"], 2, "needs --web"),
        (["--web", "--framework", "django"], 2, "flask"),
        (["--web", "--framework", "litestar"], 1, "wattfare-mw[litestar,demo]"),
    ],
)
def test_demo_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "litestar" else find(name)
    )
    run = CliRunner().invoke(cli, ["demo", *arguments])
    assert run.exit_code == code
    assert says in run.output


def check_demo_output(text: str) -> None:
    expected_lines = [
        "402 not_connected ✓",
        "a token, for ten minutes ✓",
        "connected ✓",
        "$0.000120 left",
        demo_module.PROMPT,
        "$0.000081 left",
        "$0.000042 left",
        "$0.000003 left",
        "402 budget_exceeded ✓",
    ]
    for title in ("Flask, and ada", "Starlette, and grace"):
        rest = text.partition(title)[2]
        for line in expected_lines:
            _, found, rest = rest.partition(line)
            assert found, f"{line!r} is missing at its place in\n{text}"
    assert "Every step succeeded." in text
    assert "sk_test_" not in text


def _wait_closed(port: int) -> None:
    import socket

    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) != 0:
                return
    raise AssertionError(f"port {port} still answers; pid {os.getpid()}")
