"""The code on the page runs, and its user pays for it."""

from __future__ import annotations

import re
import runpy
import subprocess
from decimal import Decimal
from pathlib import Path

import flask
import pytest
from support.node import install, node_and_npm
from support.patience import PATIENCE
from support.servers import werkzeug_server
from support.service import App, Service, environment
from wattfare_flask import WattfareMiddleware

from libraries.page import EXAMPLES
from libraries.table import Library, selected

NODE_MODULES = Path(__file__).parents[1] / "servers" / "node" / "node_modules"
_SAID = re.compile(r"(Say hello\.|Paris)\s+(\d+) tokens(?:, (0\.\d{6}) USD)?\s*")


@pytest.mark.parametrize("library", selected(), ids=lambda library: library.name)
def test_example_runs(
    library: Library,
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = EXAMPLES / library.example
    with service.app() as app:
        monkeypatch.setenv("WATTFARE_SECRET_KEY", app.keys.secret_key)
        monkeypatch.setenv("WATTFARE_BASE_URL", service.url)
        app.connect("user_123", monthlyUsd=1)
        if example.suffix == ".mjs":
            printed = _run_in_node(example, app, tmp_path)
        else:
            runpy.run_path(str(example))
            printed = capsys.readouterr().out
        spent = Decimal(str(app.status("user_123")["usage"]["monthlyUsd"]))
    found = _SAID.fullmatch(printed)
    assert found, printed
    assert int(found[2]) > 0
    assert spent > 0
    assert found[3] is None or Decimal(found[3]) == spent


def _run_in_node(example: Path, app: App, home: Path) -> str:
    """Runs it in a folder with its packages, with an app in front of the service."""
    install()
    (home / "node_modules").symlink_to(NODE_MODULES)
    copy = home / example.name
    copy.write_text(example.read_text())
    node, _ = node_and_npm()
    middleware = WattfareMiddleware(flask.Flask(__name__), resolve_user=lambda _: "user_123")
    with werkzeug_server(middleware) as (host, port):
        run = subprocess.run(
            [*node, str(copy)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environment({"APP_URL": f"http://{host}:{port}", "no_proxy": "127.0.0.1"}),
            check=False,
        )
    middleware.close()
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
