"""Ledger events in any order: each store against the pure rules."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test
from support.examples import examples
from support.sqlite import sqlite_database

from wattfare_mw.service.ledger.postgresql.store import PostgreSQLStore
from wattfare_mw.service.ledger.sqlite.store import SQLiteStore
from wattfare_mw.service.ledger.store import Store

from .ledger_machine import LedgerMachine

thorough = examples(15, stateful_step_count=40)
#: Each step takes four times as long on PostgreSQL.
fewer = examples(8, stateful_step_count=40)


class SQLiteMachine(LedgerMachine):
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()

    def new_store(self) -> Store:
        file = Path(self.directory.name) / "ledger.db"
        url = f"sqlite:///{file}" if file.exists() else sqlite_database(file.parent)
        return SQLiteStore(url, clock=lambda: self.now)

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


def test_sqlite_follows_the_rules() -> None:
    run_state_machine_as_test(SQLiteMachine, settings=thorough)


def test_postgresql_follows_the_rules(postgresql_url: str) -> None:
    class PostgreSQLMachine(LedgerMachine):
        def new_store(self) -> Store:
            return PostgreSQLStore(postgresql_url, lambda: self.now)

    run_state_machine_as_test(PostgreSQLMachine, settings=fewer)


@pytest.fixture
def postgresql_url(cluster) -> str:
    return cluster.database()
