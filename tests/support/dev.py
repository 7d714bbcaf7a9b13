"""`wattfare dev --json` as a real process on a free port."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.forked import ForkedCommand
from support.patience import PATIENCE
from support.service import App, environment
from wattfare_mw.service import AppKeys


@dataclass
class Dev:
    """A running `wattfare dev`."""

    ready: dict[str, Any]
    process: ForkedCommand
    log: list[str]

    @property
    def url(self) -> str:
        return self.ready["url"]

    @property
    def secret_key(self) -> str:
        return self.ready["secret_key"]

    @property
    def api(self) -> str:
        return f"{self.url}/api/v1"

    def app(self) -> App:
        """The backend of the test app."""
        names = ("app_id", "publishable_key", "secret_key")
        return App(self, AppKeys(*(self.ready[name] for name in names)))  # type: ignore[arg-type]

    def next_line(self) -> dict[str, Any]:
        """The next line."""
        return json.loads(self.process.stdout.readline())

    def next_call(self) -> dict[str, Any]:
        """The next line, which is about a call."""
        line = self.next_line()
        assert line["event"] == "call"
        return line


@contextmanager
def run_dev(tmp_path: Path, *options: str) -> Iterator[Dev]:
    """Runs the command from its ready line to the end of the block."""
    database = f"sqlite:///{tmp_path / 'wattfare.db'}"
    arguments = ["dev", "--port", "0", "--json", "--database", database, *options]
    process = ForkedCommand(arguments, environment())
    log: list[str] = []
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        assert line, "".join(log)
        yield Dev(json.loads(line), process, log)
    finally:
        process.terminate()
        code = process.wait(PATIENCE)
        reader.join(PATIENCE)
        process.stdout.close()
        process.stderr.close()
    assert code == 0, "".join(log)
