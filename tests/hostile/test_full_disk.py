"""A database that can be read but not written, as on a full disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.http_client import fetch
from support.postgres import Cluster
from support.service import Service, eventually, run_cli, run_service

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.api import health
from wattfare_mw.service.api.health import Health
from wattfare_mw.service.errors import not_available


def healthz(service: Service) -> httpx.Response:
    return fetch(f"{service.url}/healthz")


def unhealthy(service: Service) -> httpx.Response | None:
    time.sleep(0.05)  # there is no event to wait for
    answer = healthz(service)
    return None if answer.status_code == 200 else answer


def check_refusal(service: Service, answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert set(answer.json()) == {"error"}
    assert "disk" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]
    assert str(Path(service.database.removeprefix("sqlite:///")).parent) not in answer.text


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 8 MB. Skips the test if the machine cannot mount one."""
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if sys.platform != "linux" or mount is None or os.geteuid() != 0:
        pytest.skip("A file system can only be mounted by root on Linux.")
    if subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("No file system may be mounted here.")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    with suppress(OSError):
        while True:
            os.write(file, b"x" * 4096)
    os.close(file)


def test_health_reports_a_full_disk_until_there_is_space_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, run_service(disk) as service:
        with service.app() as app:
            app.connect()
            assert app.chat().status_code == 200
            assert healthz(service).status_code == 200
            filler = disk / "filler"
            fill(filler)
            check_refusal(service, eventually(lambda: unhealthy(service)))
            filler.unlink()
            eventually(lambda: healthz(service).status_code == 200)
            eventually(lambda: app.chat().status_code == 200)
        verified = run_cli("ledger", "verify", "--database", service.database)
        assert verified.returncode == 0, verified.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux limits another process.")
def test_health_reports_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """For the service the disk is full. Other processes can still write to it."""
    with run_service(tmp_path) as service:
        assert healthz(service).status_code == 200
        limit_files(service, 4096)
        check_refusal(service, eventually(lambda: unhealthy(service)))
        limit_files(service, -1)
        eventually(lambda: healthz(service).status_code == 200)


def limit_files(service: Service, size: int) -> None:
    """Limits the size (bytes) of the service's files; -1 removes the limit."""
    import resource

    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (size, -1))


def test_health_reports_a_read_only_postgresql(tmp_path: Path, cluster: Cluster) -> None:
    database = cluster.database()
    name = database.rpartition("/")[2]
    with run_service(tmp_path, database=database) as service:
        assert healthz(service).status_code == 200
        # New connections are read-only, as on a standby server.
        cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        cluster.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        check_refusal(service, eventually(lambda: unhealthy(service)))
        cluster.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        cluster.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        eventually(lambda: healthz(service).status_code == 200)


# -- anyone may request the health


class Database:
    """A store that only reports its health."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = asyncio.Event()
        self.error: Exception | None = None

    async def check_writable(self) -> None:
        self.asked += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(health, "time", clock)
    return clock


async def test_database_health_is_checked_once_a_second(clock: Clock) -> None:
    database: Any = Database()
    looked_after = Health(database)
    many = [asyncio.create_task(looked_after.check()) for _ in range(1000)]
    await asyncio.sleep(0)
    database.answers.set()
    await asyncio.gather(*many)
    for _ in range(1000):
        await looked_after.check()
    assert database.asked == 1
    clock.now += 1
    await looked_after.check()
    assert database.asked == 2


@pytest.mark.parametrize("error", [not_available("The disk is full."), RuntimeError("a bug")])
async def test_failed_health_check_is_cached_for_a_second_too(
    clock: Clock, error: Exception
) -> None:
    database: Any = Database()
    database.answers.set()
    database.error = error
    looked_after = Health(database)
    for _ in range(1000):
        with pytest.raises(WattfareError) as caught:
            await looked_after.check()
        assert caught.value.http_status == 503
        assert "bug" not in str(caught.value)
    assert database.asked == 1
    database.error = None
    clock.now += 1
    await looked_after.check()


async def test_hanging_database_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TIMEOUT_SECONDS", 0.01)
    database: Any = Database()
    looked_after = Health(database)
    for _ in range(3):
        with pytest.raises(WattfareError, match="does not answer"):
            await looked_after.check()
    assert database.asked == 1
    database.answers.set()
    await looked_after.check()


async def test_cancelled_health_request_does_not_stop_the_check(clock: Clock) -> None:
    database: Any = Database()
    looked_after = Health(database)
    leaving = asyncio.create_task(looked_after.check())
    staying = asyncio.create_task(looked_after.check())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    database.answers.set()
    await staying
    assert leaving.cancelled()
    assert database.asked == 1
