"""What a store guarantees beyond the rules: atomic, exactly once, even if cancelled; and
versions."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, make_url, text, update
from support.sqlite import sqlite_database

from wattfare_mw.errors import WattfareError, WattfareRateLimitError
from wattfare_mw.service.keys import new_app
from wattfare_mw.service.ledger import store as store_module
from wattfare_mw.service.ledger.databases import migrate_database, open_store
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.ledger.postgresql.store import PostgreSQLStore
from wattfare_mw.service.ledger.schema import apps, totals
from wattfare_mw.service.ledger.sqlite.store import SQLiteStore
from wattfare_mw.service.ledger.store import Store
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.service.records import (
    Account,
    App,
    Bounds,
    Connection,
    Granted,
    InferenceCall,
    LeaseRenewal,
    Outcome,
    Terms,
    Totals,
)

DONE = Outcome(ended="completed", generated=True, cost=4)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path) -> str:
    """An empty ledger, on each kind of database."""
    if request.param == "sqlite":
        return sqlite_database(tmp_path)
    return request.getfixturevalue("cluster").database()


def store_at(url: str, clock=None) -> Store:
    if url.startswith("sqlite"):
        return SQLiteStore(url, clock=clock) if clock else SQLiteStore(url)
    return PostgreSQLStore(url, clock)


def order(app: App, name: object, cost: int = 9, user: str = "u1") -> InferenceCall:
    return InferenceCall(
        id=str(name),
        app_id=app.id,
        user_id=user,
        model="m",
        bounds=Bounds(cost, cost),
        request_id="r",
    )


async def new_user(store: Store, cap: int | None) -> App:
    app, _ = new_app("app", "test")
    await store.add_app(app)
    await store.connect(app.id, "u1", cap)
    await store.renew()
    return app


async def test_concurrent_calls_of_two_processes_stop_at_the_cap(url: str) -> None:
    """These are the first calls of this user."""
    stores = [store_at(url), store_at(url)]
    app = await new_user(stores[0], 37 * 9)
    await stores[1].renew()
    answers = await asyncio.gather(
        *(stores[number % 2].reserve(order(app, number), Terms()) for number in range(200)),
        return_exceptions=True,
    )
    assert answers.count(Granted(9)) == 37
    assert sum(isinstance(answer, WattfareRateLimitError) for answer in answers) == 163
    assert (await stores[0].account(app.id, "u1"))[1] == Totals(0, 37 * 9)
    granted = [number for number, answer in enumerate(answers) if answer == Granted(9)]
    # Both processes settle each call. It is billed once.
    billed = await asyncio.gather(
        *(
            store.settle(str(number), Account(app.id, "u1"), DONE)
            for number in granted
            for store in stores
        )
    )
    assert (billed.count(4), billed.count(None)) == (37, 37)
    assert (await stores[0].account(app.id, "u1"))[1] == Totals(37 * 4, 0)
    assert await stores[0].transact(verify) == []
    for store in stores:
        await store.close()


async def test_concurrent_first_calls_of_a_user(url: str) -> None:
    """There is no totals row yet that they could lock."""
    stores = [store_at(url), store_at(url)]
    app = await new_user(stores[0], 0)
    await stores[1].renew()
    for user in (f"new{number}" for number in range(20)):
        await stores[0].connect(app.id, user, 9)
        orders = [
            msgspec.structs.replace(order(app, f"{user}-{number}"), user_id=user)
            for number in range(16)
        ]
        answers = await asyncio.gather(
            *(stores[n % 2].reserve(each, Terms()) for n, each in enumerate(orders)),
            return_exceptions=True,
        )
        assert answers.count(Granted(9)) == 1
        assert (await stores[0].account(app.id, user))[1] == Totals(0, 9)
    for store in stores:
        await store.close()


async def test_cancelled_reservation_is_still_written(url: str) -> None:
    store = store_at(url)
    app = await new_user(store, 100)
    for turns in range(12):
        task = asyncio.ensure_future(store.reserve(order(app, turns), Terms()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        held = False
        try:
            await task
            held = True
        except asyncio.CancelledError:
            held = turns > 0  # it had started
        # A call that is settled after its cancellation stays settled.
        assert await store.settle(str(turns), Account(app.id, "u1"), DONE) == (4 if held else None)
    assert (await store.account(app.id, "u1"))[1] == Totals(11 * 4, 0)
    await store.close()


async def test_cap_changes_while_calls_are_reserved(url: str) -> None:
    stores = [store_at(url), store_at(url)]
    app = await new_user(stores[0], 0)
    await stores[1].renew()
    for round_ in range(10):
        cap = round_ * 9
        answers = await asyncio.gather(
            stores[1].connect(app.id, "u1", cap),
            *(
                stores[number % 2].reserve(order(app, f"{round_}-{number}"), Terms())
                for number in range(20)
            ),
            return_exceptions=True,
        )
        totals = (await stores[0].account(app.id, "u1"))[1]
        assert totals.billed + totals.reserved <= cap
        for number, answer in enumerate(answers[1:]):
            if answer == 9:
                await stores[0].settle(f"{round_}-{number}", Account(app.id, "u1"), DONE)
    assert await stores[0].transact(verify) == []
    for store in stores:
        await store.close()


async def test_call_belongs_to_the_month_of_its_reservation(url: str) -> None:
    now = datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC)
    store = store_at(url, lambda: now)
    app = await new_user(store, 5)
    await store.reserve(order(app, 1, 5), Terms())
    october, now = now, now + timedelta(seconds=1)
    assert (await store.account(app.id, "u1"))[1] == Totals()
    assert await store.settle("1", Account(app.id, "u1"), DONE) == 4
    assert (await store.account(app.id, "u1"))[1] == Totals()
    now = october
    assert (await store.account(app.id, "u1"))[1] == Totals(billed=4)
    assert await store.transact(verify) == []
    await store.close()


async def test_two_concurrent_approvals(url: str) -> None:
    stores = [store_at(url), store_at(url)]
    app = await new_user(stores[0], 1)
    await asyncio.gather(*(stores[n % 2].connect(app.id, "new", 7) for n in range(6)))
    assert (await stores[0].account(app.id, "new"))[0] == Connection(7)
    keys = await asyncio.gather(*(store.signing_key() for store in stores * 5))
    assert len(set(keys)) == 1
    for store in stores:
        await store.close()


async def test_app_is_looked_up_once_a_second(url: str, monkeypatch) -> None:
    """Each call needs the app. A change of its row by hand is noticed."""
    store = store_at(url)
    app, _ = new_app("app", "test")
    asked: list[str] = []
    look_up = store._app_by_id

    async def count(app_id: str) -> App | None:
        asked.append(app_id)
        return await look_up(app_id)

    monkeypatch.setattr(store, "_app_by_id", count)
    moment = 100.0
    monkeypatch.setattr(store_module.time, "monotonic", lambda: moment)
    assert await store.app_by_id(app.id) is None
    await store.add_app(app)  # a new app is found at once
    for _ in range(3):
        assert await store.app_by_id(app.id) == app
    assert asked == [app.id] * 2
    await store.transact(lambda sql: sql.execute(update(apps).values(secret_hash="another")))
    moment += store_module.APP_SECONDS
    changed = await store.app_by_id(app.id)
    assert changed == msgspec.structs.replace(app, secret_hash="another")
    await store.transact(lambda sql: sql.execute(delete(apps)))
    moment += store_module.APP_SECONDS
    assert await store.app_by_id(app.id) is None
    monkeypatch.setattr(store_module, "MAX_APPS", 2)
    for _ in range(5):
        more, _ = new_app("app", "test")
        await store.add_app(more)
        assert await store.app_by_id(more.id) == more
    assert len(store._apps) <= 2
    await store.close()


async def test_call_takes_two_round_trips(cluster) -> None:
    """One to reserve and one to settle. Data sent without waiting for an answer counts as one
    trip."""
    url = make_url(await asyncio.to_thread(cluster.database))
    trips = 0
    asking = False

    async def forward(reader, writer, *, ask: bool) -> None:
        nonlocal trips, asking
        while block := await reader.read(65536):
            trips += ask and not asking
            asking = ask
            writer.write(block)
        writer.close()

    async def connected(reader, writer) -> None:
        up_reader, up_writer = await asyncio.open_connection(url.host, url.port)
        both = (forward(reader, up_writer, ask=True), forward(up_reader, writer, ask=False))
        await asyncio.gather(*both)

    async with await asyncio.start_server(connected, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        store = store_at(url.set(port=port).render_as_string(hide_password=False))
        app = await new_user(store, None)
        counts: list[int] = []
        for name in range(3):  # the first calls prepare the statements
            counts.append(trips)
            assert await store.reserve(order(app, name), Terms()) == Granted(9)
            counts.append(trips)
            assert await store.settle(str(name), Account(app.id, "u1"), DONE) == 4
        counts.append(trips)
        await store.close()
    assert [after - before for before, after in pairwise(counts)][2:] == [1, 1, 1, 1]


async def test_ledger_rows_cannot_be_changed(cluster, tmp_path) -> None:
    import sqlite3

    import asyncpg

    file = tmp_path / "ledger.db"
    urls = [f"sqlite:///{file}", await asyncio.to_thread(cluster.database)]
    for url in urls:
        store = store_at(url)
        app = await new_user(store, None)
        await store.reserve(order(app, 1), Terms())
        await store.settle("1", Account(app.id, "u1"), DONE)
        await store.close()
    postgres = await asyncpg.connect(urls[1])
    for statement in ("UPDATE ledger SET billed_nanos = 0", "DELETE FROM ledger"):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await postgres.execute(statement)
        with (
            sqlite3.connect(file) as connection,
            pytest.raises(sqlite3.IntegrityError, match="append-only"),
        ):
            connection.execute(statement)
        connection.close()
    await postgres.close()


async def test_postgresql_without_current_tables_is_left_unchanged(cluster) -> None:
    url = await asyncio.to_thread(cluster.empty_database)
    with pytest.raises(WattfareError, match="wattfare migrate"):
        await open_store(url)
    await asyncio.to_thread(migrate_database, url)
    await asyncio.to_thread(migrate_database, url)  # a second migration changes nothing
    await (await open_store(url)).close()
    name = url.rsplit("/", 1)[1]
    newer = "UPDATE alembic_version SET version_num = '9999'"
    await asyncio.to_thread(cluster.execute, newer, name)
    for attempt in (open_store(url), asyncio.to_thread(migrate_database, url)):
        with pytest.raises(WattfareError, match="9999"):
            await attempt


def test_migrations_create_the_schema_in_postgresql(cluster) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from wattfare_mw.service.ledger.databases import read_database
    from wattfare_mw.service.ledger.schema import metadata

    def compare(sql) -> list:
        context = MigrationContext.configure(sql, opts={"compare_type": True})
        return compare_metadata(context, metadata)

    assert read_database(cluster.database(), compare) == []


async def test_database_error_affects_only_its_own_transaction(tmp_path) -> None:
    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")
    app, _ = new_app("app", "test")
    jobs = [store.add_app(app), store.add_app(app), store.connect(app.id, "u1", 5)]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    assert answers[0] is None
    assert answers[1].status == 503
    assert answers[2] is True
    assert (await store.account(app.id, "u1"))[0] == Connection(5)
    await store.close()


async def test_verify_finds_a_total_that_its_rows_do_not_support(tmp_path) -> None:
    import sqlite3

    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")
    app = await new_user(store, None)
    await store.reserve(order(app, "1", cost=5), Terms())
    await store.settle(
        "1", Account(app.id, "u1"), Outcome(ended="completed", generated=True, cost=5)
    )
    assert await store.transact(verify) == []
    await store.close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("UPDATE totals SET billed_nanos = billed_nanos + 1")
    connection.commit()
    connection.close()
    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert len(await store.transact(verify)) == 1
    await store.close()


async def test_database_of_another_version_is_left_unchanged(tmp_path) -> None:
    import sqlite3

    await SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}").close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(WattfareError, match="9999"):
        SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")


def test_threads_can_open_their_own_databases_at_once(tmp_path) -> None:
    """An app's tests do this, with a service each. Alembic itself allows one migration in a
    process."""
    threads = 8
    ready = threading.Barrier(threads)

    def open_it(number: int) -> list[str]:
        async def keep() -> list[str]:
            store = await open_store(f"sqlite:///{tmp_path / f'{number}.db'}")
            try:
                return await store.transact(verify)
            finally:
                await store.close()

        ready.wait()
        return asyncio.run(keep())

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(open_it, range(threads))) == [[]] * threads


def test_migrations_create_the_schema(tmp_path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from wattfare_mw.service.ledger.schema import metadata

    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    asyncio.run(SQLiteStore(url).close())
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        # Alembic does not compare these.
        written = dict(connection.exec_driver_sql("SELECT name, sql FROM sqlite_master").all())
        for table in metadata.sorted_tables:
            own_index = not table.dialect_options["sqlite"]["with_rowid"]
            assert ("WITHOUT ROWID" in written[table.name]) == own_index, table.name
    engine.dispose()


async def test_data_of_an_older_version_survives_the_migration(tmp_path) -> None:
    """SQLite tables are rebuilt, so a call that was in flight is settled, too."""
    from alembic import command
    from sqlalchemy import create_engine

    from wattfare_mw.service.ledger.migrate import _config

    engine = create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    with engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        for table, *row in (
            ("apps", "a", "app", "test", "hash", "pk_test_a", 1),
            ("connections", "a", "u1", 100, 1, 1, 3),
            ("grants", "g", "a", 1, 50, 2_000_000_000, 0, 6),
            ("totals", "a", "u1", "2026-10", 7, 5),
            ("holders", "gone", 1),
            ("holders", "here", 9_000_000_000_000),
            (
                *("reservations", "r1", "a", "u1", None, "2026-10", "m", 5, 1, "request"),
                *("gone", 1, 3, 2, 8, 9),
            ),
            (
                *("reservations", "r2", "a", None, "g", "2026-10", "m", 6, 1, "request"),
                *("here", 0, 0, 0, 0, 0),
            ),
            (
                *("ledger", 1, "r0", 1, 1, "a", "u1", None, "2026-10", "m"),
                *(1, 1, 7, 7, None, "completed", "request"),
            ),
        ):
            values = ", ".join("?" * len(row))
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({values})", tuple(row))
    engine.dispose()
    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert await store.transact(verify) == []
    assert (await store.account("a", "u1"))[0] == Connection(100, revocations=3)
    assert await store.sweep() == 1  # except what another process still holds
    assert await store.transact(verify) == []
    [_, swept] = await store.transact(lambda sql: list(rows_of(sql)))
    settled = {name: swept[name] for name in ("reservation_id", "billed_nanos", "prompt_tokens")}
    assert settled == {"reservation_id": "r1", "billed_nanos": 2, "prompt_tokens": 8}
    assert await store.settle("r2", Account("a", grant_hash="g"), DONE) == 4
    assert await store.transact(verify) == []
    await store.close()


class OlderStore(PostgreSQLStore):
    """The store before three changes: before payers, before settlements named their account, and
    before reservations recorded whether the cost has a bound."""

    async def connect(self, app_id: str, user_id: str, *_: Any, **__: Any) -> bool:
        insert = text(
            "INSERT INTO connections (app_id, user_id, connected, changed_at) "
            "VALUES (:app, :user, true, 1)"
        )
        await self.transact(lambda sql: sql.execute(insert, {"app": app_id, "user": user_id}))
        return True

    async def _reserve(self, call: InferenceCall, terms: Terms, holder: str) -> Granted:
        row = await self._ask(
            "SELECT * FROM wattfare_reserve("
            "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
            *(call.id, holder, call.app_id, call.user_id, call.grant_hash, call.model),
            *(call.stream, call.bounds.least, call.bounds.most, call.bounds.requires_cap),
            *(terms.operator_pays, terms.ceiling, call.request_id, call.account_name),
            *(None, None, None),
        )
        return Granted(row["o_granted"])

    async def settle(self, reservation_id: str, account: Account, outcome: Outcome) -> int | None:
        row = await self._ask(
            "SELECT wattfare_settle($1, $2, $3, $4, $5, $6, $7, $8)",
            *(reservation_id, outcome.ended, outcome.generated, outcome.cost, outcome.claimed),
            *(outcome.prompt_tokens, outcome.completion_tokens, None),
        )
        return row[0]

    async def _renew(self, holder, readings, *, fresh) -> LeaseRenewal:
        row = await self._ask_reserved(
            "SELECT * FROM wattfare_renew($1, $2, $3, $4, $5, $6, $7, $8)",
            *(holder, fresh, 5000, [], [], [], [], None),
        )
        return LeaseRenewal(held=row["o_held"])


async def test_postgresql_is_migrated_under_a_running_service(cluster) -> None:
    from alembic import command

    from wattfare_mw.service.ledger.migrate import _config, migrate
    from wattfare_mw.service.ledger.postgresql.store import run_once

    def to_the_version_before(sql) -> None:
        config = _config()
        with sql.begin():
            config.attributes["connection"] = sql
            command.upgrade(config, "0003")

    url = await asyncio.to_thread(cluster.empty_database)
    await run_once(url, to_the_version_before)
    store = OlderStore(url)
    app, _ = new_app("app", "test")
    await store.add_app(app)
    await store.renew()
    migrated = asyncio.Event()
    done: list[bool] = []
    calls = 0

    async def user(name: str) -> None:
        nonlocal calls
        await store.connect(app.id, name, None)
        while not migrated.is_set():
            calls += 1
            id_ = str(calls)
            await store.renew()  # however long this takes
            waits = not done
            try:
                await store.reserve(order(app, id_, user=name), Terms())
            except WattfareError as failure:
                # A call that waits for the migration runs the old function, which knows another key
                # of the totals.
                if waits and failure.http_status == 503:
                    continue
                raise
            assert await store.settle(id_, Account(app.id, name), DONE) == 4

    async def migrating() -> None:
        while calls < 50:
            await asyncio.sleep(0)
        await run_once(url, migrate)
        done.append(True)
        before = calls
        while calls < before + 50:
            await asyncio.sleep(0)
        migrated.set()

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(user(f"u{number}"))
        group.create_task(migrating())
    assert await store.transact(verify) == []
    await store.close()


async def test_call_without_a_total_is_not_settled(tmp_path) -> None:
    """A person has deleted the row by hand. The spending that the cap is compared with must not
    shrink."""
    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")
    app = await new_user(store, None)
    await store.reserve(order(app, "1", cost=5), Terms())
    await store.transact(lambda sql: sql.execute(delete(totals)))
    with pytest.raises(WattfareError) as caught:
        await store.settle("1", Account(app.id, "u1"), DONE)
    assert caught.value.http_status == 503
    assert await store.transact(lambda sql: list(rows_of(sql))) == []
    assert await store.transact(verify) != []  # the reservation stays
    await store.close()
