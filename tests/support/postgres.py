"""A PostgreSQL for tests: one cluster for a run, one database for each test."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection as Sql
from sqlalchemy import text

from .patience import PATIENCE
from .ports import free_port
from .shared_run import SharedRun, at_the_end, locked

MISSING = (
    "PostgreSQL is not installed: the ledger is tested on SQLite only. "
    "To run the rest: apt-get install postgresql (Debian), and the extra `postgresql`."
)
#: Nothing needs to survive a crash of the machine, so nothing is flushed to the disk. Committed
#: data still reaches the operating system: a server that is killed must not lose it. No database
#: lives long enough to need a vacuum.
FAST = ("fsync=off", "full_page_writes=off", "autovacuum=off", "max_connections=500")

#: What ends the other sessions of a database and empties its tables.
EMPTY_TABLES = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
SET session_replication_role = replica;
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        IF name <> 'alembic_version' THEN EXECUTE format('DELETE FROM %I', name); END IF;
    END LOOP;
END $$;
ALTER SEQUENCE ledger_id_seq RESTART;
"""


class Cluster:
    """A running server that trusts every local client."""

    def __init__(self, folder: Path, binaries: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._binaries = binaries
        self._unused: list[str] = []

    def url(self, name: str) -> str:
        """The URL of this database."""
        return f"postgresql://wattfare@127.0.0.1:{self.port}/{name}"

    def database(self) -> str:
        """The URL of a new database with tables."""
        with locked(self.folder / "template.lock"):
            ready = self.folder / "template.ready"
            if not ready.exists():
                from wattfare_mw.service.ledger.databases import migrate_database

                self.execute('CREATE DATABASE "template"')
                migrate_database(self.url("template"))
                ready.touch()
        return self.empty_database('TEMPLATE "template"')

    @contextmanager
    def lent_database(self) -> Iterator[str]:
        """The URL of a database with empty tables. It is emptied after the block and used again: to
        create one takes eight times as long. The block must not change the schema."""
        url = self._unused.pop() if self._unused else self.database()
        yield url
        self.execute(EMPTY_TABLES, url.rpartition("/")[2])
        self._unused.append(url)

    def empty_database(self, options: str = "") -> str:
        """The URL of a new database without tables."""
        name = f"t{secrets.token_hex(8)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def execute(self, statement: str, name: str = "postgres") -> None:
        """Runs this statement in that database."""
        import asyncpg

        async def run() -> None:
            connection = await asyncpg.connect(self.url(name))
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(run())

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = [*FAST, "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}"]
        options = f"-p {self.port} " + " ".join(f"-c {setting}" for setting in settings)
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stops the server even if clients are connected."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def create(self) -> None:
        """Creates its files."""
        self._run("initdb", "-U", "wattfare", "-A", "trust", "-E", "UTF8", "--no-sync")

    def command(self, name: str, *arguments: str) -> list[str]:
        """The command line of one of PostgreSQL's programs for this cluster."""
        line = [str(self._binaries / name), "-D", str(self.folder / "data"), *arguments]
        if os.geteuid() == 0:  # which PostgreSQL refuses to be
            line = ["runuser", "-u", "postgres", "--", *line]
        return line

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            self.command(name, *arguments),
            check=False,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr.decode()


@contextmanager
def run_cluster() -> Iterator[Cluster]:
    """Runs a cluster until the block ends. Skips the test if PostgreSQL is not installed."""
    cluster = _new_cluster()
    remove, *arguments = _removal(cluster)
    with at_the_end(remove, *arguments):
        cluster.create()
        cluster.start()
        yield cluster


def shared_cluster(run: SharedRun) -> Cluster:
    """The cluster of this run. Skips the test if PostgreSQL is not installed."""

    def start() -> tuple[str, int]:
        cluster = _new_cluster()
        run.at_end("sh", "-c", *_removal(cluster))
        cluster.create()
        cluster.start()
        return str(cluster.folder), cluster.port

    folder, port = run.once("postgresql", start)
    binaries = _binaries()
    assert binaries is not None
    return Cluster(Path(folder), binaries, port)


def _new_cluster() -> Cluster:
    pytest.importorskip("asyncpg", reason=MISSING)
    binaries = _binaries()
    if binaries is None and os.environ.get("CI"):
        install("postgresql")
        binaries = _binaries()
        assert binaries is not None
    if binaries is None:
        pytest.skip(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="wattfare-pg-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    return Cluster(folder, binaries, free_port())


def _removal(cluster: Cluster) -> list[str]:
    """A shell script with its arguments that stops the cluster and removes its files."""
    stop = cluster.command("pg_ctl", "-w", "-m", "immediate", "stop")
    return ['cd /; "$@"; rm -rf "$0"', str(cluster.folder), *stop]


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")  # Debian's location
    newest = max(versions, key=lambda path: int(path.parents[1].name), default=None)
    return None if newest is None else newest.parent


def install(*packages: str) -> None:
    """Installs these Debian packages, in CI only."""
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        subprocess.run(
            [*sudo, "apt-get", *arguments],
            check=True,
            timeout=600,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )


def until_a_lock_is_awaited(sql: Sql, other: Future[Any]) -> None:
    """Waits until the other transaction waits for one of our locks, or has ended without one."""
    wanted = text(
        "SELECT count(*) FROM pg_locks"
        " WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    )
    ends = time.monotonic() + 30
    while not other.done() and not sql.execute(wanted).scalar_one():
        assert time.monotonic() < ends
        sql.execute(text("SELECT pg_sleep(0.01)"))
