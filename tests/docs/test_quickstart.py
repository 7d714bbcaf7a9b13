"""The first section of the README, as a newcomer types it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.dev import run_dev
from support.patience import PATIENCE
from support.ports import free_port
from support.service import environment, eventually

ROOT = Path(__file__).parents[2]


def test_quickstart_from_the_export_lines_to_a_billed_call(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Start in five minutes") :].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    [start] = [block for block in blocks if block.startswith("flask ")]
    [ask] = [block for block in blocks if block.startswith("curl ")]
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    port = free_port()
    with run_dev(tmp_path) as dev:
        keys = {"WATTFARE_SECRET_KEY": dev.secret_key, "WATTFARE_BASE_URL": dev.url}
        app = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(start)],
            cwd=ROOT,
            env=environment({**keys, "FLASK_RUN_PORT": str(port), "no_proxy": "127.0.0.1"}),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            eventually(lambda: _listens(port))
            ask = ask.replace("curl ", "curl -s --noproxy '*' ").replace(":5000/", f":{port}/")
            answer = subprocess.run(
                ["bash", "-c", ask],
                capture_output=True,
                timeout=PATIENCE,
                check=True,
            )
        finally:
            app.terminate()
            app.wait(PATIENCE)
        assert json.loads(answer.stdout)["choices"][0]["message"]["content"] == "Who pays for this?"
        call = dev.next_call()
    assert (call["user"], call["model"]) == ("ann", "wattfare/echo")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
