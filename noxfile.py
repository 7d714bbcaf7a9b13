"""Runs the tests with other versions than those in requirements/test.txt.

``make test-long``, ``make test-newest``, ``make test-libraries`` and ``make test-browsers`` use
this file. Each session has a separate environment.
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
#: The tests that depend on the HTTP client.
TRANSPORT = ["tests/core", "tests/middleware/test_streams.py", "tests/middleware/test_gone.py"]
#: The extras in pyproject.toml.
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
            # Replace the editable install, so the tests run the files that a user installs.
            session.install("--no-deps", "--no-build-isolation", ".")
            # Old versions of the dependencies have other types.
            session.run(*PYTEST, "-m", "not long", "--ignore=tests/typing", *session.posargs)


@nox.session
@nox.parametrize("version", minor_versions())
def aiohttp(session: nox.Session, version: str) -> None:
    """Run the tests of the HTTP clients with the newest release of this minor version of
    aiohttp."""
    install(session, "test")
    session.install(f"aiohttp=={version}.*")
    session.run(*PYTEST, *TRANSPORT, *session.posargs)


@nox.session
def other_aiohttp(session: nox.Session) -> None:
    """Run the same tests as if direct.py did not support the installed version of aiohttp."""
    install(session, "test")
    plugin = ["-p", "support.other_aiohttp"]
    session.run(*PYTEST, *plugin, *TRANSPORT, *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
@nox.parametrize("extra", ["nothing", *OPTIONAL])
def extras(session: nox.Session, extra: str) -> None:
    """Install the wheel with one extra into an empty environment, and run a script that uses it."""
    with tempfile.TemporaryDirectory() as name:
        # Build with the hatchling of nox's environment, so that the session's environment stays
        # empty.
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
        session.run(*build, "--directory", name, external=True, silent=True)
        (wheel,) = Path(name).glob("*.whl")
        # These extras need the service.
        chosen = {"nothing": ""}.get(extra, f"[{extra}]")
        if extra in ("postgresql", "redis", "tokenizer"):
            chosen = f"[service,{extra}]"
        session.install(f"{wheel}{chosen}")
        script = ROOT / "tests" / "packaging" / "extras" / f"with_{extra.replace('-', '_')}.py"
        with session.chdir(name):  # a folder without the sources
            session.run("python", "-W", "default", str(script), env={"PYTHONPATH": ""})


@nox.session
def newest(session: nox.Session) -> None:
    """Run all tests with the newest version of each dependency."""
    session.install("--upgrade", "--editable", ".", "--group", "test")
    session.run(*PYTEST, *session.posargs)


@nox.session
@nox.parametrize("lock", ["libraries", "libraries-openai-2"])
def libraries(session: nox.Session, lock: str) -> None:
    """Run the named AI libraries against the service, or `all`."""
    sys.path.insert(0, str(ROOT / "tests"))
    from libraries.table import VARIABLE, choose

    chosen = [library.name for library in choose(session.posargs) if library.lock == lock]
    if not chosen:
        session.skip("no chosen library is in this lock file")
    install(session, lock)
    # The libraries cause warnings that we cannot fix.
    pytest = ["pytest", "-W", "ignore", "--durations=3", "tests/libraries"]
    # `make test` compares docs/libraries.md with the stored results, so this test is skipped here.
    session.run(*pytest, "--ignore=tests/libraries/test_page.py", env={VARIABLE: " ".join(chosen)})


@nox.session
def browsers(session: nox.Session) -> None:
    """Test the pages, the button and the demo in Chromium."""
    install(session, "browsers")
    # Run one browser per core. More of them would only slow each other down.
    jobs = os.environ.get("JOBS", str(os.cpu_count() or 1))
    session.run("pytest", "-n", jobs, "--durations=5", "tests/browsers", *session.posargs)


def install(session: nox.Session, name: str) -> None:
    """Install a lock file and this project, like the targets of the Makefile."""
    place = ["--uv", session.virtualenv.location]
    session.run(sys.executable, "requirements/install.py", name, *place, external=True)
