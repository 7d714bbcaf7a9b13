"""The rows. Each is a benchmark that can run alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..harness.bench import Bench
from . import connections, counts, gateways, growth, in_process, inference, service, streams


@dataclass(frozen=True)
class Row:
    """A benchmark.

    Attributes:
        quick: True if it runs with ``--quick``. False if it needs an installation, or if another
            row runs the same code.
    """

    about: str
    run: Callable[[Bench], None]
    quick: bool = True
    needs_wrk: bool = True


ROWS: dict[str, Row] = {
    "other-paths-asgi": Row(
        "the app's other paths, ASGI", in_process.other_paths_asgi, needs_wrk=False
    ),
    "other-paths-wsgi": Row(
        "the app's other paths, WSGI", in_process.other_paths_wsgi, needs_wrk=False
    ),
    "json-aiohttp": Row("inference, JSON, aiohttp", inference.over("aiohttp", "json", 0.85)),
    "streams-aiohttp": Row(
        "inference, streams, aiohttp", inference.over("aiohttp", "streams", 0.85), quick=False
    ),
    "json-httpx": Row("inference, JSON, httpx", inference.over("httpx", "json", 0.95), quick=False),
    "streams-httpx": Row("inference, streams, httpx", inference.over("httpx", "streams", 0.95)),
    "json-httpx2": Row(
        "inference, JSON, httpx2", inference.over("httpx2", "json", 0.95), quick=False
    ),
    "streams-httpx2": Row(
        "inference, streams, httpx2", inference.over("httpx2", "streams", 0.95), quick=False
    ),
    "sync-resolver": Row("inference with a sync resolve_user", inference.sync_resolver),
    "token": Row("the token path", inference.token),
    "wsgi-json": Row("inference, JSON, WSGI", inference.over_wsgi("json"), quick=False),
    "wsgi-streams": Row("inference, streams, WSGI", inference.over_wsgi("streams")),
    "service-json": Row("the service, JSON, SQLite", service.sqlite_row("json", 0.5), quick=False),
    "service-streams": Row("the service, streams, SQLite", service.sqlite_row("streams", 0.6)),
    "litellm-json": Row(
        "the service and other gateways, JSON", gateways.row("json", 60), quick=False
    ),
    "litellm-streams": Row(
        "the service and other gateways, streams", gateways.row("streams", 60), quick=False
    ),
    "postgresql": Row("the service on PostgreSQL", service.postgresql, quick=False),
    "first-byte": Row(
        "first byte of a stream through the middleware and the service",
        streams.first_byte,
        needs_wrk=False,
    ),
    "memory": Row("memory of open streams", streams.memory, needs_wrk=False),
    "import": Row("import wattfare_mw", in_process.imports, needs_wrk=False),
    "growth-bodies": Row("bodies of 1 kB to 1 MB", growth.bodies),
    "growth-ledger": Row("ledgers of 10 and 1,000,000 rows", growth.history),
    "growth-users": Row("10 and 100,000 users", growth.users, quick=False),
    "counts": Row("instruction counts", counts.row, needs_wrk=False),
    "connections-json": Row(
        "charts of JSON with 1 to 128 connections", connections.row("json"), quick=False
    ),
    "connections-streams": Row(
        "charts of streams with 1 to 128 connections", connections.row("streams"), quick=False
    ),
}
