"""``wattfare serve`` as its own process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wattfare_mw import Wattfare

COMMAND = Path(sys.executable).with_name("wattfare")


def wattfare(*arguments: str) -> str:
    """What a command prints."""
    return subprocess.run(
        [COMMAND, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


@contextmanager
def real_service(*options: str) -> Iterator[Wattfare]:
    """A client of its own app."""
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/wattfare.db"
        process = subprocess.Popen(
            [COMMAND, "serve", "--port", "0", "--database", database, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            output = ""
            while (found := re.search(r"http://127\.0\.0\.1:\d+", output)) is None:
                line = process.stdout.readline()
                assert line, f"it exited:{output}"
                output += line
            keys = json.loads(wattfare("apps", "create", "app", "--json", "--database", database))
            with Wattfare(keys["secretKey"], base_url=found[0]) as wf:
                yield wf
        finally:
            process.terminate()
            process.communicate()
