"""The Django adapter with a real PostgreSQL: its connections, and the case that all of them break.
The users have UUIDs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.http_client import http_client
from support.postgres import Cluster
from support.rules import INFERENCE, JSON, MODELS, STATUS, TOKEN, ask
from support.servers import gunicorn_server, uvicorn_process
from support.service import eventually

psycopg = pytest.importorskip("psycopg")

PATHS = [
    ("POST", TOKEN, ""),
    ("GET", STATUS, ""),
    ("GET", MODELS, ""),
    ("POST", INFERENCE, ask()),
    ("POST", INFERENCE, ask(stream=True)),
    ("DELETE", STATUS, ""),
]


class Project:
    """The served project and its database."""

    def __init__(self, url: str, cluster: Cluster, database: str) -> None:
        self.http = http_client(base_url=url)
        self._admin = psycopg.connect(cluster.url("postgres"), autocommit=True)
        self._name = urlsplit(database).path.lstrip("/")

    def ask(self, method: str, path: str, body: str = "") -> int:
        return self.http.request(method, path, content=body, headers=JSON).status_code

    def break_connections(self) -> None:
        """Breaks all connections, as a restart of the database does."""
        self._admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [self._name],
        )

    def connections(self) -> int:
        """The number of connections."""
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        row = self._admin.execute(count, [self._name]).fetchone()
        assert row is not None
        return row[0]

    def close(self) -> None:
        self.http.close()
        self._admin.close()


@contextmanager
def served(app: str, cluster: Cluster, fake: FakeWattfare, age: str) -> Iterator[Project]:
    database = cluster.empty_database()
    env = {
        "DATABASE": database,
        "CONN_MAX_AGE": age,
        "WATTFARE_SECRET_KEY": SECRET_KEY,
        "WATTFARE_BASE_URL": fake.url,
    }
    name = f"support.django_app:{app}"
    server: Any
    if app.endswith("asgi"):
        server = uvicorn_process(name, env=env)
    else:
        server = gunicorn_server(name, "--worker-class", "gthread", "--threads", "1", env=env)
    with server as listening:
        host, port = listening[0] if app.endswith("asgi") else listening
        project = Project(f"http://{host}:{port}", cluster, database)
        with closing(project):
            yield project


@pytest.mark.parametrize(("app", "age"), [("wsgi", "None"), ("asgi", "0")])
def test_project_survives_a_database_restart(
    app: str, age: str, cluster: Cluster, fake: FakeWattfare
) -> None:
    with served(app, cluster, fake, age) as project:
        user = project.http.get("/sign-in/ann").text
        assert uuid.UUID(user)
        # A view of the project fails the same way: under WSGI, the first request finds a broken
        # connection.
        assert project.ask("GET", "/count") == 200
        project.break_connections()
        of_a_view = [project.ask("GET", "/count") for _ in range(2)]
        assert of_a_view == [500 if app == "wsgi" else 200, 200]
        for method, path, body in PATHS:
            assert project.ask(method, path, body) < 300
            project.break_connections()
            codes = [project.ask(method, path, body) for _ in range(2)]
            assert [code < 300 for code in codes] == [code < 300 for code in of_a_view]
            if app == "asgi":
                eventually(lambda: project.connections() == 0)
        payers = {exchange.user for exchange in fake.exchanges if "completions" in exchange.path}
        assert payers == {user}
