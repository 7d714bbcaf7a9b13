"""No extra: the client, the middleware, and a command that says what to install."""

import subprocess
import sys
from pathlib import Path

from fake_service import fake_service

from wattfare_mw import Wattfare, WattfareMiddleware


async def app(scope, receive, send): ...


with fake_service():
    with Wattfare() as wf:
        answer = wf.user("ann").model("wattfare/echo").generate("Say hello.")
    assert (answer.text, str(answer.cost_usd)) == ("Hello.", "0.000003")
    WattfareMiddleware(app, resolve_user=lambda request: None)
command = Path(sys.executable).with_name("wattfare")
run = subprocess.run([command, "serve"], capture_output=True, text=True, check=False)
assert run.returncode == 1
assert "pip install 'wattfare-mw[service]'" in run.stderr, run.stderr
