"""The commands of frameworks and servers find each kind of app in the docs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi_cli.discover import ModuleData, get_app_name
from fastapi_cli.exceptions import FastAPICLIException
from flask import Flask
from flask.cli import NoAppException, find_best_app
from support.http_client import http_client
from support.patience import PATIENCE
from support.ports import free_port
from support.rules import INFERENCE, TOKEN
from support.service import App, bearer, chat_body, environment, eventually

from wattfare_mw import WattfareMiddleware

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

#: The command, and the example that is saved as app.py in its folder. `make test` tries one of each
#: framework.
COMMANDS = [
    ("flask run --port {port}", "flask_app"),
    ("fastapi dev --port {port}", "fastapi_app"),
    ("litestar run --port {port}", "litestar_app"),
    *(
        pytest.param(*command, marks=pytest.mark.long)
        for command in (
            ("flask --debug run --port {port}", "flask_factory"),
            ("gunicorn --bind 127.0.0.1:{port} --threads 2 app:create_app()", "flask_factory"),
            ("gunicorn --bind 127.0.0.1:{port} app:app", "plain_wsgi"),
            ("fastapi run --port {port} app.py", "fastapi_app"),
            ("uvicorn --port {port} app:app", "starlette_app"),
            ("uvicorn --port {port} app:app", "plain_asgi"),
        )
    ),
]


@contextmanager
def running(command: str, folder: Path, account: App) -> Iterator[str]:
    """Runs a command in its own process group: some commands have a reloader."""
    port = free_port()
    program, *arguments = command.format(port=port).split()
    process = subprocess.Popen(
        [sys.executable, "-m", program, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment(
            {
                "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "adapters"))),
                "WATTFARE_SECRET_KEY": account.keys.secret_key,
                "WATTFARE_BASE_URL": account.service.url,
                "no_proxy": "127.0.0.1",
            }
        ),
    )
    assert process.stdout is not None
    log: list[str] = []
    reader = threading.Thread(target=log.extend, args=(process.stdout,), daemon=True)
    reader.start()

    def listens() -> bool:
        assert process.poll() is None, "".join(log)
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE):
            return True
        return False

    try:
        eventually(listens)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        reader.join(PATIENCE)
        process.stdout.close()


@pytest.mark.parametrize(("command", "example"), COMMANDS)
def test_command_finds_the_app(command: str, example: str, account: App, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text((EXAMPLES / f"{example}.py").read_text())
    with (
        running(command, tmp_path, account) as url,
        http_client(base_url=url) as client,
    ):
        assert client.post("/sign-in/ann").is_success
        token = client.post(TOKEN)
        assert token.status_code == 200, token.text
        connected = account.http.post("/connections", headers=bearer(token.json()["token"]))
        assert connected.status_code == 200
        answer = client.post(INFERENCE, json=chat_body("one two three"))
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "one two three"


def test_flask_run_does_not_find_a_middleware_around_an_app(at_fake: dict[str, Any]) -> None:
    """Therefore the docs keep the name `app` for the app itself."""
    module = ModuleType("app")
    module.app = WattfareMiddleware(Flask("app"), resolve_user=str, **at_fake)  # type: ignore[attr-defined]
    with pytest.raises(NoAppException, match="Failed to find Flask application"):
        find_best_app(module)


def test_fastapi_dev_does_not_find_a_middleware_around_an_app(
    at_fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Therefore the docs use add_wattfare()."""
    module = ModuleType("app_around_an_app")
    module.app = WattfareMiddleware(FastAPI(), resolve_user=str, **at_fake)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    data = ModuleData(module_import_str=module.__name__, extra_sys_path=Path(), module_paths=[])
    with pytest.raises(FastAPICLIException, match="Could not find FastAPI app"):
        get_app_name(mod_data=data)
