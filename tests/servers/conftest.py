"""The pairs of frameworks and servers in front of the service, and the two clients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import openai
import pytest
from support.forked import run_forked
from support.http_client import http_client, ssl_context
from support.node import Sdk, run_sdk
from support.pairs import PAIRS, Pair, Server, run_server
from support.patience import PATIENCE
from support.service import App, Service
from support.sqlite import sqlite_database


class MortalService(Service):
    """A service that a test can kill. Afterwards, a new process serves at the same address."""

    def __init__(self, database: str, stack: ExitStack) -> None:
        self._stack = stack
        process, url = stack.enter_context(run_forked(database=database, stop_grace=0))
        self._server = process
        super().__init__(url, database, process=None)  # type: ignore[arg-type]

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Kills the process, and starts the next one at the end of the block."""
        self._server.kill()
        try:
            yield
        finally:
            self._server.join(PATIENCE)
            port = int(self.url.rpartition(":")[2])
            again = run_forked(port, database=self.database, stop_grace=0)
            self._server, _ = self._stack.enter_context(again)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalService]:
    with ExitStack() as stack:
        yield MortalService(sqlite_database(tmp_path_factory.mktemp("service")), stack)


@pytest.fixture(scope="session")
def app(service: Service) -> Iterator[App]:
    """The app's account with the service."""
    with service.app() as account:
        yield account


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: pair.name)
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.param


@pytest.fixture(scope="module")
def server(
    pair: Pair, service: Service, app: App, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with run_server(pair, service, app.keys, tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="session")
def sdk() -> Iterator[Sdk]:
    with run_sdk() as running:
        yield running


_numbers = itertools.count()


@pytest.fixture
def new_user() -> Callable[[], str]:
    """Returns the id of a new user of this app."""
    return lambda: f"user-{next(_numbers)}"


@pytest.fixture
def openai_for() -> Iterator[Callable[[Server, str], openai.OpenAI]]:
    """The official client, with this user's cookie."""
    clients: list[openai.OpenAI] = []

    def make(server: Server, user: str | None) -> openai.OpenAI:
        client = openai.OpenAI(
            api_key="none of the browser's business",
            base_url=f"{server.url}/api/wattfare",
            default_headers={"cookie": f"user={user}"} if user else {},
            max_retries=0,
            http_client=openai.DefaultHttpxClient(
                trust_env=False, timeout=PATIENCE, verify=ssl_context()
            ),
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    with http_client() as client:
        yield client
