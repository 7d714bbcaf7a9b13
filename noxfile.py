"""Run the tests with other versions than those of requirements/test.txt.

``make test-long``, ``make test-newest``, ``make test-libraries`` and ``make test-browsers`` call
this. Each session has an environment of its own.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
nox.options.default_venv_backend = "uv"
PYTEST = ["pytest", "-n", os.environ.get("JOBS", "auto")]
#: The tests of what stands on an HTTP client.
TRANSPORT = ["tests/core", "tests/middleware/test_streams.py", "tests/middleware/test_gone.py"]
#: The extras of pyproject.toml.
OPTIONAL = nox.project.load_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
DIRECT = ROOT / "wattfare_mw" / "transport" / "direct.py"


def minor_versions() -> list[str]:
    """The minor versions of aiohttp that direct.py names in ``FITTING``."""
    named = re.search(r"^FITTING = (.*)$", DIRECT.read_text(), re.MULTILINE)
    assert named is not None
    first, end = ast.literal_eval(named[1])
    return [f"{first[0]}.{minor}" for minor in range(first[1], end[1])]


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests of an unpacked sdist, with the lowest versions that it declares."""
    with tempfile.TemporaryDirectory() as name:
        install(session, "lowest")
        session.run("hatchling", "build", "--target", "sdist", "--directory", name)
        (sdist,) = Path(name).glob("*.tar.gz")
        shutil.unpack_archive(sdist, name)
        with session.chdir(sdist.with_name(sdist.name.removesuffix(".tar.gz"))):
            # In place of the editable one: the tests see what a user installs.
            session.install("--no-deps", "--no-build-isolation", ".")
            # The types of old versions differ.
            session.run(*PYTEST, "-m", "not long", "--ignore=tests/typing", *session.posargs)


@nox.session
@nox.parametrize("version", minor_versions())
def aiohttp(session: nox.Session, version: str) -> None:
    """Run the tests of the HTTP clients, with the newest patch release of a minor version."""
    install(session, "test")
    session.install(f"aiohttp=={version}.*")
    session.run(*PYTEST, *TRANSPORT, *session.posargs)


@nox.session
def other_aiohttp(session: nox.Session) -> None:
    """Run the same tests as if direct.py did not name the version of aiohttp."""
    install(session, "test")
    plugin = ["-p", "support.other_aiohttp"]
    session.run(*PYTEST, *plugin, *TRANSPORT, *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
@nox.parametrize("extra", ["nothing", *OPTIONAL])
def extras(session: nox.Session, extra: str) -> None:
    """Install the wheel with one extra into an empty environment, and use it."""
    with tempfile.TemporaryDirectory() as name:
        # With the hatchling beside nox: the environment stays empty.
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
        session.run(*build, "--directory", name, external=True, silent=True)
        (wheel,) = Path(name).glob("*.whl")
        # Some extras add to the service and need it.
        chosen = {"nothing": ""}.get(extra, f"[{extra}]")
        if extra in ("postgresql", "redis", "tokenizer"):
            chosen = f"[service,{extra}]"
        session.install(f"{wheel}{chosen}")
        script = ROOT / "tests" / "packaging" / "extras" / f"with_{extra.replace('-', '_')}.py"
        with session.chdir(name):  # a folder without the sources
            session.run("python", "-W", "default", str(script), env={"PYTHONPATH": ""})


@nox.session
def newest(session: nox.Session) -> None:
    """Run all tests, with the newest version of everything."""
    session.install("--upgrade", "--editable", ".", "--group", "test")
    session.run(*PYTEST, *session.posargs)


@nox.session
@nox.parametrize("lock", ["libraries", "libraries-openai-2"])
def libraries(session: nox.Session, lock: str) -> None:
    """Run AI libraries against the service: those that are named, or `all`."""
    sys.path.insert(0, str(ROOT / "tests"))
    from libraries.table import VARIABLE, choose

    chosen = [library.name for library in choose(session.posargs) if library.lock == lock]
    if not chosen:
        session.skip("none of the libraries is in this set")
    install(session, lock)
    # The warnings are those of the libraries.
    pytest = ["pytest", "-W", "ignore", "--durations=3", "tests/libraries"]
    # `make test` holds the page to what is written in it.
    session.run(*pytest, "--ignore=tests/libraries/test_page.py", env={VARIABLE: " ".join(chosen)})


@nox.session
def browsers(session: nox.Session) -> None:
    """Run the pages and the demo in a real Chromium."""
    install(session, "browsers")
    # One browser for each core: four tests at a time on two cores would wait for each other.
    jobs = os.environ.get("JOBS", str(os.cpu_count() or 1))
    session.run("pytest", "-n", jobs, "--durations=5", "tests/browsers", *session.posargs)


def install(session: nox.Session, name: str) -> None:
    """Install a locked set and this project, as the targets of the Makefile do."""
    place = ["--uv", session.virtualenv.location]
    session.run(sys.executable, "requirements/install.py", name, *place, external=True)
