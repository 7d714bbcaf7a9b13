"""The plugin in separate pytest runs: what it loads and shows, and that whole runs work."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.patience import PATIENCE
from support.service import environment

ROOT = Path(__file__).parents[2]
#: Modules that are slow to import.
HEAVY = {"aiohttp", "httpx", "msgspec", "sqlalchemy", "starlette", "uvicorn", "wattfare_mw.service"}
OPTIONS = ("-q", "-W", "error", "-p", "no:cacheprovider", "-p", "wattfare_mw.testing.plugin")


def run_pytest(folder: Path, *arguments: str) -> str:
    """Runs pytest in this folder without plugins of other packages. Returns its output."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
        check=False,
    )
    return run.stdout + run.stderr


def test_plugin_loads_no_slow_module_and_is_listed(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import sys\n\n"
        "def pytest_unconfigure(config):\n"
        f"    print('loaded:', sorted({HEAVY!r} & sys.modules.keys()))\n"
    )
    output = run_pytest(tmp_path, "--fixtures")
    assert "loaded: []" in output, output
    assert "wattfare --" in output, output
    assert "A real Wattfare service on a real socket, with a new app" in output, output


def test_marker_is_described(pytestconfig: pytest.Config) -> None:
    assert any(line.startswith("wattfare(") for line in pytestconfig.getini("markers"))


def test_package_declares_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"wattfare": "wattfare_mw.testing.fixtures"}
    assert project["optional-dependencies"]["testing"] == ["wattfare-mw[service]"]


@pytest.mark.long
def test_whole_run_in_two_processes(tmp_path: Path) -> None:
    """Runs the examples, an app that is created at import, and calls that are left open."""
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nwattfare_environment = true\nasyncio_default_fixture_loop_scope = function\n"
    )
    (tmp_path / "shop.py").write_text(
        "from wattfare_mw import Wattfare\n\n"
        "wf = Wattfare()\n"
        "model = wf.user('ann').model('openai/gpt-5')\n"
    )
    (tmp_path / "test_shop.py").write_text(_RUN)
    (tmp_path / "conftest.py").write_text(_RUN_AGAIN)
    examples = sorted((ROOT / "examples" / "testing").glob("test_*.py"))
    assert len(examples) == 5
    for example in examples:
        shutil.copy(example, tmp_path)
    output = run_pytest(tmp_path, "-p", "asyncio", "-p", "xdist", "-n", "2")
    assert "16 passed" in output, output
    assert "3 failed" in output, output  # a failed subtest also counts
    assert "1 xfailed" in output, output
    assert "2 errors" in output, output
    assert "ann reserves 0.000007 USD for a stream of openai/gpt-5" in output, output
    assert "ERROR test_shop.py::test_leaves_a_stream_open - " in output, output
    assert "ERROR test_shop.py::test_leaves_a_stream_open_when_it_runs_again" in output, output
    assert "ResourceWarning" not in output, output


_RUN = """
import os

import pytest
from shop import model, wf

from wattfare_mw import WattfareError, WattfareNotConnectedError

BEFORE = dict(os.environ)
streams = []


@pytest.mark.parametrize("number", range(4))
def test_made_at_import(wattfare, number):
    with pytest.raises(WattfareNotConnectedError):
        model.generate("Hello Ann")
    wattfare.user("ann").connect(5)
    model.generate("Hello Ann")
    assert str(wattfare.billed("ann")) == "0.000006"
    assert os.environ["WATTFARE_SECRET_KEY"] == wattfare.secret_key


def test_without_the_fixture():
    assert os.environ["WATTFARE_SECRET_KEY"] == BEFORE["WATTFARE_SECRET_KEY"]
    with pytest.raises(WattfareError) as failed:
        model.generate("Hello Ann")
    assert failed.value.code in ("network", "auth")


def leave_open(wattfare):
    wattfare.user("ann").connect(5)
    wattfare.reply("one two three", pause=30)
    streams.append(model.stream("Hello"))


runs = []


def test_leaves_a_stream_open_when_it_runs_again(wattfare):
    leave_open(wattfare)
    runs.append(1)
    assert len(runs) == 2


def test_leaves_a_stream_open(wattfare):
    leave_open(wattfare)


@pytest.mark.wattfare(allow_reserved=True)
def test_may_leave_a_stream_open(wattfare):
    leave_open(wattfare)


def test_fails_with_a_stream_open(wattfare):
    leave_open(wattfare)
    assert False


def test_fails_in_a_subtest_with_a_stream_open(wattfare, subtests):
    with subtests.test():
        leave_open(wattfare)
        assert False


@pytest.mark.xfail
def test_fails_as_expected_with_a_stream_open(wattfare):
    leave_open(wattfare)
    assert False


@pytest.fixture(scope="module", autouse=True)
def _close():
    yield
    for stream in streams:
        stream.close()
    wf.close()
"""

_RUN_AGAIN = """
from _pytest.runner import runtestprotocol


def pytest_runtest_protocol(item, nextitem):
    # Like pytest-rerunfailures.
    if item.name.endswith("again"):
        runtestprotocol(item, log=False, nextitem=nextitem)
        item._initrequest()
"""
