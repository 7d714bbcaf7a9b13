"""Serving processes by the dozen: forked from one that has imported everything, each is up in a
moment, and is as real, and as mortal, as one that a shell has started."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

#: How long anything of this may take before a test is called failed, in seconds.
PATIENCE = 60

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "uvicorn.protocols.http.h11_impl",
        "wattfare_mw.service.ledger.postgresql.store",
        "wattfare_mw.service.server",
        "wattfare_mw.service.ledger.sqlite.writer",
    ]
)


@contextmanager
def run_forked(**settings: Any) -> Iterator[tuple[BaseProcess, str]]:
    """A process that serves with these :class:`~wattfare_mw.service.Settings`, and its URL. It is
    stopped at the end of the block, unless it is dead by then."""
    listening, said = _forks.Pipe(duplex=False)
    process = _forks.Process(target=_serve, args=(settings, said), daemon=True)
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


def _serve(settings: dict[str, Any], said: Connection) -> None:
    from wattfare_mw.service import Settings, serve

    serve(Settings(**settings), "127.0.0.1", 0, said.send)
