"""`wattfare doctor`: each configuration fault has a line that says what to do."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.cli import invoke_cli
from support.dev import Dev, run_dev
from support.http_client import fetch
from support.ports import refused_port
from support.upstream import run_upstream

from wattfare_mw.service import create_keys

#: An address without a service, for checks that need none.
NOWHERE = f"http://127.0.0.1:{refused_port()}"
LOCAL = {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with run_dev(tmp_path_factory.mktemp("dev")) as running:
        yield running


def checks(*arguments: str, key: str = "", url: str = "") -> tuple[int, dict[str, Any]]:
    """Returns the exit code and the last finding of each name."""
    env = {**LOCAL}
    if key:
        env["WATTFARE_SECRET_KEY"] = key
    if url:
        env["WATTFARE_BASE_URL"] = url
    answer = invoke_cli("doctor", "--json", *arguments, env=env)
    assert answer.exit_code in (0, 1), answer.output
    assert not key or key not in answer.output
    findings = json.loads(answer.stdout)
    assert findings["ok"] == (answer.exit_code == 0)
    for one in findings["checks"]:
        assert one["state"] in ("ok", "warn", "fail", "skip")
        assert one["do"] or one["state"] in ("ok", "skip"), one
    return answer.exit_code, {one["name"]: one for one in findings["checks"]}


def test_correct_setup_passes(dev: Dev) -> None:
    code, found = checks(
        "--database", dev.ready["database"], key=dev.secret_key, url=f"{dev.url}/api/v1/"
    )
    assert code == 0
    wanted = ("key", "address", "clock", "database", "streaming")
    assert [found[name]["state"] for name in wanted] == ["ok"] * 5, found


def test_output_for_a_person(dev: Dev) -> None:
    env = {**LOCAL, "WATTFARE_BASE_URL": dev.url}
    answer = invoke_cli("doctor", env=env)
    assert answer.exit_code == 1
    assert "WATTFARE_SECRET_KEY is not set" in answer.stdout
    assert "→ Type: export WATTFARE_SECRET_KEY=" in answer.stdout
    assert "wattfare dev" in answer.stdout


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("pk_test_1_2", "publishable"),
        ("'sk_test_1_2'", "quotes"),
        ("hunter2", "not a secret key"),
        ("sk_test_1_a b", "not a secret key"),
        ("sk_test_0123456789abcdef_" + "0" * 48, "refuses the key"),
    ],
)
def test_wrong_key_is_found(dev: Dev, key: str, says: str) -> None:
    code, found = checks(key=key, url=dev.url)
    assert code == 1
    assert found["key"]["state"] == "fail"
    assert says in found["key"]["says"]
    assert "wattfare dev" in found["key"]["do"]
    assert found["address"]["state"] == "ok"


@pytest.mark.parametrize(
    ("url", "says", "do"),
    [
        pytest.param(NOWHERE, "Nothing listens", "wattfare dev", id="nothing"),
        ("localhost:8787", "is not a URL", "http://127.0.0.1:8787"),
        ("http://u:p@127.0.0.1/", "password", "export WATTFARE_BASE_URL"),
    ],
)
def test_wrong_address_is_found(url: str, says: str, do: str) -> None:
    code, found = checks(key="sk_test_1_2", url=url)
    assert code == 1
    assert found["address"]["state"] == "fail"
    assert says in found["address"]["says"]
    assert do in found["address"]["do"]


def test_https_address_of_an_http_service_is_found(dev: Dev) -> None:
    code, found = checks(key=dev.secret_key, url=dev.url.replace("http:", "https:"))
    assert code == 1
    assert "does not use TLS" in found["address"]["says"]
    assert f"export WATTFARE_BASE_URL={dev.url}" in found["address"]["do"]


# -- a proxy in front of a service


class _Proxy(BaseHTTPRequestHandler):
    """A proxy with one fault."""

    protocol_version = "HTTP/1.1"
    target = ""
    fault = ""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.fault == "redirect":
            return self._answer(308, b"", {"location": f"https://pay.example.com{self.path}"})
        if self.fault == "page":
            return self._answer(200, b"<html>It works!</html>", {})
        if self.fault == "down":
            return self._answer(502, b"<html>Bad gateway</html>", {})
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("host", "content-length", "connection")
        }
        answer = fetch(self.target + self.path, self.command, content=body, headers=headers)
        more = {"content-type": answer.headers["content-type"]}
        if self.fault == "clock":
            more["date"] = formatdate(time.time() - 120, usegmt=True)
        return self._answer(answer.status_code, answer.content, more)  # all of it at once

    do_POST = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@contextmanager
def before(service: str, fault: str) -> Iterator[str]:
    handler = type("Proxy", (_Proxy,), {"target": service, "fault": fault})
    server: socketserver.BaseServer
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("fault", "name", "says", "do"),
    [
        ("redirect", "address", "redirects", "export WATTFARE_BASE_URL=https://pay.example.com"),
        ("page", "address", "not a Wattfare service", "WATTFARE_BASE_URL"),
        ("down", "address", "proxy", "Start the service"),
        ("clock", "clock", "seconds ahead", "NTP"),
        ("", "streaming", "all at once", "proxy_buffering off"),
    ],
)
def test_faulty_proxy_is_found(dev: Dev, fault: str, name: str, says: str, do: str) -> None:
    with before(dev.url, fault) as url:
        code, found = checks(key=dev.secret_key, url=url)
    assert code == 1
    assert found[name]["state"] == "fail", found
    assert says in found[name]["says"]
    assert do in found[name]["do"]


# -- the database


def test_database_in_another_directory_is_found(dev: Dev, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    _, found = checks(key=dev.secret_key, url=NOWHERE)
    assert found["database"]["state"] == "skip"
    assert not (tmp_path / "wattfare.db").exists()
    _, found = checks("--database", "sqlite:///other.db", key=dev.secret_key, url=NOWHERE)
    assert found["database"]["state"] == "fail"
    create_keys("sqlite:///wattfare.db", "another")
    _, found = checks(key=dev.secret_key, url=NOWHERE)
    assert found["database"]["state"] == "warn"
    assert "your key's app is not in it" in found["database"]["says"]
    (tmp_path / "empty.db").touch()
    _, found = checks("--database", "sqlite:///empty.db", key=dev.secret_key, url=NOWHERE)
    assert found["database"]["state"] == "fail"
    assert "wattfare serve" in found["database"]["do"]


# -- the upstream


def test_upstream_is_checked(dev: Dev, tmp_path: Path) -> None:
    with run_upstream() as upstream:
        given = ("--upstream", upstream.url)
        _, found = checks(*given, key=dev.secret_key, url=NOWHERE)
        assert found["upstream"]["state"] == "ok"
        models = {"data": [{"id": "free/one"}, {"id": "my/two"}]}
        upstream.models_script = lambda exchange: exchange.answer(models)
        _, found = checks(*given, "--price", "free/one=0/0", key=dev.secret_key, url=NOWHERE)
        assert found["prices"]["state"] == "warn"
        assert "1 of 2" in found["prices"]["says"]
        assert "--price 'my/two=IN/OUT'" in found["prices"]["do"]
        file = tmp_path / "wattfare.toml"
        file.write_text(f'upstream = "{upstream.url}"\nport = 1\n[prices]\n"*" = "1/2"\n')
        _, found = checks("--config", str(file), key=dev.secret_key, url=NOWHERE)
        assert found["prices"]["state"] == "ok"
        upstream.models_script = lambda exchange: exchange.answer({}, status=503)
        _, found = checks(*given, key=dev.secret_key, url=NOWHERE)
        assert found["upstream"]["state"] == "fail"


# -- the app


def test_app_is_checked(dev: Dev) -> None:
    with before(dev.url, "page") as url:
        code, found = checks("--app-url", url, key=dev.secret_key, url=dev.url)
    assert (code, found["app"]["state"]) == (1, "fail")
    assert "Add the middleware" in found["app"]["do"]
