"""The middleware, driven from both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.drivers import Driver
from support.fake_wattfare import SECRET_KEY, FakeWattfare

from wattfare_mw import AsyncWattfare, Wattfare


@pytest.fixture
def once(drive: Any, fake: FakeWattfare, interface: str) -> Iterator[Callable[..., Driver]]:
    """A middleware whose client does not retry."""
    kind = AsyncWattfare if interface == "asgi" else Wattfare
    clients: list[Any] = []
    drivers: list[Any] = []

    def make(url: str | None = None, **options: Any) -> Any:
        clients.append(kind(SECRET_KEY, base_url=url or fake.url, max_retries=0))
        drivers.append(drive(client=clients[-1], **options))
        return drivers[-1]

    yield make
    for client, driver in zip(clients, drivers, strict=True):
        if interface == "asgi":
            driver.loop.run(client.aclose())
        else:
            client.close()


@pytest.fixture(autouse=True)
def _no_idle_connection_goes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables the idle timeout, so that only the tested event closes a connection."""
    for module in ("over_aiohttp", "own_httpx"):
        monkeypatch.setattr(f"wattfare_mw.transport.{module}.KEEPALIVE_SECONDS", 3600)
