"""Many serving processes: each is forked from one that has imported everything. Each starts at once
and is a real process, which can be killed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from support.patience import PATIENCE

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        # The tokenizer takes 0.7 s of CPU time, and the table of prices 0.2 s.
        "bpe_openai",
        "certifi",
        "encodings.idna",
        "genai_prices.data",
        "genai_prices.data_snapshot",
        "uvicorn.lifespan.on",
        "uvicorn.loops.auto",
        "uvicorn.loops.uvloop",
        "uvicorn.protocols.http.h11_impl",
        "wattfare_mw.cli.commands",
        "wattfare_mw.service.sockets",
        "wattfare_mw.service.ledger.postgresql.store",
        "wattfare_mw.service.server",
        "wattfare_mw.service.ledger.sqlite.writer",
        "wattfare_mw.transport.over_aiohttp",
    ]
)


@contextmanager
def run_forked(port: int = 0, **settings: Any) -> Iterator[tuple[BaseProcess, str]]:
    """Runs a process that serves with these :class:`~wattfare_mw.service.Settings`; yields it with
    its URL. The process is stopped at the end of the block if it still runs."""
    listening, said = _forks.Pipe(duplex=False)
    process = _forks.Process(target=_serve, args=(settings, port, said), daemon=True)
    process.start()
    said.close()
    try:
        with listening:
            assert listening.poll(PATIENCE), "the service did not start"
            yield process, listening.recv()
    finally:
        if process.is_alive():
            process.terminate()
        process.join(PATIENCE)
        assert not process.is_alive(), "the service did not stop"


def _serve(settings: dict[str, Any], port: int, said: Connection) -> None:
    gc.freeze()  # garbage collection need not check imported modules in each process
    from wattfare_mw.service import Settings, serve

    serve(Settings(**settings), "127.0.0.1", port, said.send)


class ForkedCommand:
    """`wattfare …` in its own process, with the parts of ``subprocess.Popen`` that tests use.

    Args:
        arguments: the arguments of the command.
        variables: the whole environment.
    """

    def __init__(self, arguments: list[str], variables: dict[str, str]) -> None:
        (out, out_end), (err, err_end) = _forks.Pipe(duplex=False), _forks.Pipe(duplex=False)
        self._process = _forks.Process(
            target=_run_command, args=(arguments, variables, out_end, err_end), daemon=True
        )
        with out, err, out_end, err_end:
            self._process.start()
            self.stdout = os.fdopen(os.dup(out.fileno()))
            self.stderr = os.fdopen(os.dup(err.fileno()))

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """The exit code, once the process has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("wattfare", timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run_command(
    arguments: list[str], variables: dict[str, str], out: Connection, err: Connection
) -> None:
    gc.freeze()
    from wattfare_mw.cli.commands import cli

    os.environ.clear()
    os.environ.update(variables)
    with out, err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    cli(arguments, prog_name="wattfare")
