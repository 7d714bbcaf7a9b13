"""``python -m benchmarks.profiles``: profiles servers under load with py-spy.

Writes ``profiles/NAME.txt``: the share of each function in the samples, for the function alone and
with all functions that it calls. Samples of waiting threads are left out.
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
_LINES = 45
_FRAME = frozenset({"built in", "asyncio", "click", "concurrent", "wattfare_mw/cli/serve.py"})

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
            command += [
                "--threads",
                "--rate",
                "250",
                "--duration",
                str(_SECONDS),
                "--output",
                file.name,
            ]
            if name.startswith("wsgi"):  # count only the thread that holds the GIL
                command.append("--gil")
            spy = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
            subprocess.run(spy, check=True, capture_output=True, timeout=120)
            stacks = Path(file.name).read_text().splitlines()
        loading.join()
    return _text(name, stacks)


def _worker(server: Server) -> int:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return int(children.split()[0]) if children.split() else server.process.pid


def _text(name: str, stacks: list[str]) -> str:
    packages: collections.Counter[str] = collections.Counter()
    own: collections.Counter[str] = collections.Counter()
    all_in: collections.Counter[str] = collections.Counter()
    for line in stacks:
        frames, _, text = line.rpartition(" ")
        count = int(text)
        names = [_function(frame) for frame in frames.split(";")]
        packages[_package(names[-1])] += count
        own[names[-1]] += count
        for each in set(names):
            all_in[each] += count
    total = own.total()
    # Functions that start a process or a thread are in every stack.
    all_in = collections.Counter({f: n for f, n in all_in.items() if _package(f) not in _FRAME})
    parts = [f"{name}: {total} samples in {_SECONDS} s"]
    for title, counter in (
        ("by package, own time", packages),
        ("by function, own time", own),
        ("by function, with all that it calls", all_in),
    ):
        parts.append(f"\n{title}")
        parts += [f"{n / total:7.1%}  {f}" for f, n in counter.most_common(_LINES)]
    return "\n".join(parts) + "\n"


def _package(function: str) -> str:
    path = function.rpartition("(")[2].rstrip(")")
    top, _, rest = path.partition("/")
    # Our own functions are grouped by module.
    return path if top == "wattfare_mw" else top if rest else "built in"


def _function(frame: str) -> str:
    """The name of a function and its file, without the line and the path of the environment."""
    name, _, place = frame.partition(" (")
    path = place.rpartition(":")[0] or place.rstrip(")")
    return f"{name} ({path.rpartition('site-packages/')[2]})"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or CASES:
        text = profile(chosen)
        (FOLDER / f"{chosen}.txt").write_text(text)
        print(text)
