"""``python -m benchmarks.profiles``: where the time goes under load, by py-spy, as text.

Writes ``profiles/NAME.txt``: the functions by their own time and by all that they call, as shares
of the samples in which the process ran.
"""

from __future__ import annotations

import collections
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .harness import load
from .harness.load import BARE, OURS, Load, check, wrk
from .harness.processes import Server, asgi, upstream, wsgi
from .harness.service import data_folder, serving, sqlite
from .rows.inference import signed_in

FOLDER = Path(__file__).with_name("profiles")
_SECONDS = 10
_LINES = 40

Case = Callable[[], "Iterator[tuple[Server, Load]]"]


def _asgi(app: str, what: Load) -> Case:
    def case() -> Iterator[tuple[Server, Load]]:
        with upstream() as up, asgi(app, app, up.url) as server:
            yield server, what

    return case


def _wsgi(app: str, what: Load) -> Case:
    def case() -> Iterator[tuple[Server, Load]]:
        with upstream() as up, wsgi(app, app, up.url) as server:
            yield server, what

    return case


def _service(kind: str) -> Case:
    def case() -> Iterator[tuple[Server, Load]]:
        with (
            upstream() as up,
            data_folder() as folder,
            serving("service", sqlite(folder), up.url) as service,
        ):
            yield service.server, service.streams() if kind == "streams" else service.completions()

    return case


CASES: dict[str, Case] = {
    "bare-json-aiohttp": _asgi("peers.asgi:over_aiohttp", load.completions(BARE)),
    "bare-streams-aiohttp": _asgi("peers.asgi:over_aiohttp", load.streams(BARE)),
    "json-aiohttp": _asgi("apps.asgi:over_aiohttp", signed_in(load.completions(OURS))),
    "streams-aiohttp": _asgi("apps.asgi:over_aiohttp", signed_in(load.streams(OURS))),
    "json-httpx": _asgi("apps.asgi:over_httpx", signed_in(load.completions(OURS))),
    "bare-json-httpx": _asgi("peers.asgi:over_httpx", load.completions(BARE)),
    "wsgi-json": _wsgi("apps.wsgi:over_httpx", signed_in(load.completions(OURS))),
    "service-json": _service("json"),
    "service-streams": _service("streams"),
}


def profile(name: str) -> str:
    """The profile of one case, as text."""
    with contextmanager(CASES[name])() as (server, what):
        check(server, what)
        loading = threading.Thread(target=wrk, args=(server, what, _SECONDS + 4))
        loading.start()
        with tempfile.NamedTemporaryFile() as file:
            command = ["py-spy", "record", "--pid", str(_worker(server)), "--format", "raw"]
            command += ["--rate", "250", "--duration", str(_SECONDS), "--output", file.name]
            spy = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
            subprocess.run(spy, check=True, capture_output=True, timeout=120)
            stacks = Path(file.name).read_text().splitlines()
        loading.join()
    return _text(name, stacks)


def _worker(server: Server) -> int:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return int(children.split()[0]) if children.split() else server.process.pid


def _text(name: str, stacks: list[str]) -> str:
    own: collections.Counter[str] = collections.Counter()
    all_in: collections.Counter[str] = collections.Counter()
    total = 0
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        names = [_function(frame) for frame in frames.split(";")]
        total += int(count)
        own[names[-1]] += int(count)
        for each in set(names):
            all_in[each] += int(count)
    parts = [f"{name}: {total} samples in {_SECONDS} s"]
    for title, counter in (("by own time", own), ("with all that they call", all_in)):
        parts.append(f"\n{title}")
        parts += [f"{n / total:7.1%}  {f}" for f, n in counter.most_common(_LINES)]
    return "\n".join(parts) + "\n"


def _function(frame: str) -> str:
    """Without the line, and without where the packages are."""
    name, _, place = frame.partition(" (")
    path = place.rpartition(":")[0] or place.rstrip(")")
    return f"{name} ({path.rpartition('site-packages/')[2]})"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or CASES:
        text = profile(chosen)
        (FOLDER / f"{chosen}.txt").write_text(text)
        print(text)
