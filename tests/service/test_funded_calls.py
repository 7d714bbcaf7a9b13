"""Calls paid with payers' own keys: which key is sent, the effect of a refusal, and where a key
could appear."""

from __future__ import annotations

import asyncio
import secrets
import signal
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from support.cli import invoke_cli
from support.fake_openrouter import FakeOpenRouter, Key, run_openrouter
from support.pages import Browser
from support.patience import PATIENCE
from support.payers import SignedIn, new_payer, store_of, write
from support.service import App, Service, eventually, run_service
from support.upstream import Exchange, completion_of

from wattfare_mw.service.ledger import schema
from wattfare_mw.service.ledger.store import Store
from wattfare_mw.service.payers.encryption import FILE_SUFFIX

OPERATOR = "sk-or-v1-operator-0123456789abcdef0123456789"
OPTIONS = ("--user-ceiling-usd", "5", "--log-level", "debug")
VARIABLES = {"WATTFARE_UPSTREAM_KEY": OPERATOR}
ENCRYPTION_KEY = b64encode(secrets.token_bytes(32)).decode()


@dataclass
class Payer:
    """A payer with a key, who pays for one user of an app."""

    signed_in: SignedIn
    key: Key
    funding_id: str
    user: str


@pytest.fixture
def router(router: FakeOpenRouter) -> FakeOpenRouter:
    """The fake OpenRouter, with the operator as its only person."""
    router.person("operator", "1000")
    router.keys[OPERATOR] = Key(OPERATOR, "operator", "operator")
    return router


@contextmanager
def serving(
    folder: Path, router: FakeOpenRouter, *options: str, database: str | None = None, **env: str
) -> Iterator[Service]:
    """A service with OpenRouter as its upstream."""
    given = {"WATTFARE_ENCRYPTION_KEY": ENCRYPTION_KEY, **env}
    with run_service(folder, *router.options, *options, env=given, database=database) as service:
        yield service


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def funded(
    request: pytest.FixtureRequest,
    openrouter: FakeOpenRouter,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service on each database, whose operator also has a key."""
    folder = tmp_path_factory.mktemp("funded")
    database = None
    if request.param == "postgresql":
        database = request.getfixturevalue("cluster").database()
    with serving(folder, openrouter, *OPTIONS, database=database, **VARIABLES) as service:
        yield service


@pytest.fixture
async def store(funded: Service) -> AsyncIterator[Store]:
    async with store_of(funded.database) as store:
        yield store


@pytest.fixture
def app(funded: Service) -> Iterator[App]:
    with funded.app() as app:
        yield app


async def new_funding(
    router: FakeOpenRouter, service: Service, store: Store, person: str, **fields: Any
) -> tuple[SignedIn, Key, str]:
    """A payer who has added their own key. Returns the payer, the key and the id of the funding."""
    key = router.new_key(router.person(person), **fields)
    signed_in = await new_payer(store)
    funding_id = add_key(service, signed_in, key)
    return signed_in, key, funding_id


def add_key(service: Service, payer: SignedIn, key: Key, **fields: str) -> str:
    """Adds a key on the page. Returns the id of the funding."""
    with Browser(service, payer.cookie) as browser:
        answer = browser.send(browser.get("/funding").form("Add the key"), key=key.key, **fields)
        assert answer.status_code == 303, answer.text
        return [href for text, href in browser.get("/funding").links if text == "Remove"][-1].split(
            "/"
        )[2]


async def connect(
    store: Store, app: App, user: str, payer_id: str, funding_id: str | None, cap: int | None = None
) -> None:
    """Connects a user's budget, as an approval does."""
    await store.connect(app.keys.app_id, user, cap, payer_id=payer_id, funding_id=funding_id)


async def new_paying(
    router: FakeOpenRouter, app: App, store: Store, person: str, **fields: Any
) -> Payer:
    """A payer with their own key, who pays for the user of the same name."""
    signed_in, key, funding_id = await new_funding(router, app.service, store, person, **fields)
    await connect(store, app, person, signed_in.payer_id, funding_id)
    return Payer(signed_in, key, funding_id, person)


def chat(app: App, user: str, **fields: Any) -> httpx.Response:
    return app.chat("hello", user, model="fake/model", **fields)


def logged(service: Service, words: str) -> bool:
    """True if the service has logged this as an error. Its log comes through a pipe."""
    return eventually(lambda: any("ERROR" in line and words in line for line in service.log))


def sent_keys(router: FakeOpenRouter) -> list[str]:
    """The keys of the calls that OpenRouter has received."""
    return [call.headers.get("authorization", "") for call in router.upstream.calls]


async def state_of(store: Store, funding_id: str) -> str:
    table = schema.funding
    return await store.transact(
        lambda sql: sql.execute(select(table.c.state).where(table.c.id == funding_id)).scalar_one()
    )


async def test_each_payer_of_an_app_pays_with_their_own_key(
    router: FakeOpenRouter, app: App, store: Store
) -> None:
    alice = await new_paying(router, app, store, "alice")
    bob = await new_paying(router, app, store, "bob")
    app.connect("carol", monthlyUsd=1)
    for user in ("alice", "bob", "carol", "alice"):
        assert chat(app, user).status_code == 200
    assert sent_keys(router) == [
        f"Bearer {key}" for key in (alice.key.key, bob.key.key, OPERATOR, alice.key.key)
    ]
    assert alice.key.used == 2 * router.cost
    assert bob.key.used == router.cost
    assert app.status("alice")["usage"]["monthlyUsd"] == float(2 * router.cost)


async def test_operators_ceiling_does_not_limit_payers(
    router: FakeOpenRouter, app: App, store: Store
) -> None:
    await new_paying(router, app, store, "alice")
    router.cost = Decimal(6)
    router.credit["alice"] = Decimal(100)
    app.connect("carol")
    assert app.status("carol")["limits"]["monthlyUsd"] == 5
    for _ in range(2):
        assert chat(app, "alice").status_code == 200


# -- refusals


async def test_revoked_key_is_invalid_until_it_is_connected_again(
    router: FakeOpenRouter, app: App, store: Store
) -> None:
    alice = await new_paying(router, app, store, "alice")
    assert chat(app, "alice").status_code == 200
    alice.key.revoked = True
    answer = chat(app, "alice")
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "funding_invalid")
    assert await state_of(store, alice.funding_id) == "invalid"
    assert app.status("alice")["usage"]["monthlyUsd"] == float(router.cost)
    # The next call is not even sent, although the provider would accept the key again.
    alice.key.revoked = False
    sent = len(router.upstream.calls)
    answer = chat(app, "alice")
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "funding_invalid")
    assert len(router.upstream.calls) == sent

    key = router.new_key("alice")
    with Browser(app.service, alice.signed_in.cookie) as browser:
        page = browser.get("/funding")
        assert "The provider refuses this key" in page.text
        answer = browser.send(page.form("Replace"), key=key.key)
        assert "refuses this key" not in browser.follow(answer).text
    assert chat(app, "alice").status_code == 200
    assert sent_keys(router)[-1] == f"Bearer {key.key}"
    assert await state_of(store, alice.funding_id) == "removed"


async def test_openrouter_can_be_connected_again(
    router: FakeOpenRouter, app: App, store: Store
) -> None:
    person = router.person("alice")
    signed_in = await new_payer(store)
    with Browser(app.service, signed_in.cookie) as browser:

        def connect_openrouter() -> str:
            form = browser.get("/funding").form("Connect OpenRouter")
            url = router.allow(browser.send(form).headers["location"], person)
            return browser.get(url).link("Remove").split("/")[2]

        funding_id = connect_openrouter()
        await connect(store, app, "alice", signed_in.payer_id, funding_id)
        assert chat(app, "alice").status_code == 200
        router.keys_of(person)[-1].revoked = True
        assert chat(app, "alice").json()["error"]["code"] == "funding_invalid"
        connect_openrouter()
    assert chat(app, "alice").status_code == 200
    first, second = router.keys_of(person)
    assert second.used == router.cost
    assert first.used == router.cost


async def test_stream_reports_a_refused_key(router: FakeOpenRouter, app: App, store: Store) -> None:
    alice = await new_paying(router, app, store, "alice")
    alice.key.revoked = True
    answer = chat(app, "alice", stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "funding_invalid")
    assert await state_of(store, alice.funding_id) == "invalid"


async def test_empty_account_error_says_what_to_do(
    router: FakeOpenRouter, app: App, store: Store
) -> None:
    alice = await new_paying(router, app, store, "alice")
    bob = await new_paying(router, app, store, "bob", limit=Decimal("0.000001"))
    router.credit["alice"] = Decimal(0)
    for user, words in (("alice", "Add credit"), ("bob", "Raise the limit of this key")):
        answer = chat(app, user)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (402, "budget_exceeded"), answer.text
        assert error["limitedBy"] == "funding"
        assert words in error["message"]
    assert await state_of(store, alice.funding_id) == "valid"
    assert await state_of(store, bob.funding_id) == "valid"
    router.retry_after = 7
    answer = chat(app, "alice")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    router.credit["alice"] = Decimal(1)
    assert chat(app, "alice").status_code == 200


async def test_refusal_of_the_operators_key_is_not_shown_to_users(
    router: FakeOpenRouter, app: App, store: Store
) -> None:
    app.connect("carol", monthlyUsd=1)
    router.keys[OPERATOR].revoked = True
    answer = chat(app, "carol")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream")
    assert logged(app.service, "operator's account")


# -- what is stored


async def test_swapped_ciphertext_pays_for_nothing(
    router: FakeOpenRouter, app: App, store: Store
) -> None:
    """An attacker who can write to the database but not decrypt cannot make Bob pay for Mallory."""
    bob = await new_paying(router, app, store, "bob")
    mallory = await new_paying(router, app, store, "mallory")
    table = schema.funding
    stolen = await store.transact(
        lambda sql: sql.execute(
            select(table.c.ciphertext).where(table.c.id == bob.funding_id)
        ).scalar_one()
    )
    await write(
        store,
        update(table).where(table.c.id == mallory.funding_id).values(ciphertext=bytes(stolen)),
    )
    answer = chat(app, "mallory")
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "funding_invalid")
    assert not router.upstream.calls
    assert logged(app.service, "cannot be decrypted")
    assert chat(app, "bob").status_code == 200


async def test_key_is_sent_to_no_other_upstream(router: FakeOpenRouter, tmp_path: Path) -> None:
    with serving(tmp_path, router) as service, service.app() as app:
        async with store_of(service.database) as store:
            alice = await new_paying(router, app, store, "alice")
        keys = app.keys
    with (
        run_openrouter() as other,
        serving(tmp_path, other) as service,
        App(service, keys) as app,
    ):
        other.keys[alice.key.key] = alice.key  # it would accept the key
        other.person("alice")
        answer = chat(app, "alice")
        assert not other.upstream.calls
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "funding_invalid")


async def test_encryption_key_can_be_rotated(router: FakeOpenRouter, tmp_path: Path) -> None:
    old, new = (b64encode(secrets.token_bytes(32)).decode() for _ in range(2))

    def rotated(keys: str) -> Any:
        return serving(tmp_path, router, WATTFARE_ENCRYPTION_KEY=keys)

    with rotated(old) as service, service.app() as app:
        async with store_of(service.database) as store:
            alice = await new_paying(router, app, store, "alice")
        keys = app.keys

    async def encrypted_by() -> str:
        async with store_of(service.database) as store:
            table = schema.funding
            return await store.transact(
                lambda sql: sql.execute(select(table.c.encryption_key_id)).scalar_one()
            )

    first = await encrypted_by()
    with rotated(new) as service, App(service, keys) as app:
        assert chat(app, "alice").json()["error"]["code"] == "funding_invalid"
        assert logged(service, "1 stored keys")
    with rotated(f"{old},{new}") as service, App(service, keys) as app:
        assert chat(app, "alice").status_code == 200
        assert await encrypted_by() == first
    with rotated(f"{new}, {old}") as service, App(service, keys) as app:
        assert chat(app, "alice").status_code == 200
        assert await encrypted_by() != first
    with rotated(new) as service, App(service, keys) as app:
        assert chat(app, "alice").status_code == 200
    assert set(sent_keys(router)) == {f"Bearer {alice.key.key}"}


def test_wrong_encryption_key_stops_the_start_and_is_not_shown(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'wattfare.db'}"
    run = invoke_cli(
        "serve", "--port", "0", "--database", database, env={"WATTFARE_ENCRYPTION_KEY": "hunter2"}
    )
    assert run.exit_code != 0
    assert "WATTFARE_ENCRYPTION_KEY" in run.stderr
    assert "hunter2" not in run.output + run.stderr


# -- removal


@contextmanager
def open_stream(app: App, user: str) -> Iterator[Iterator[str]]:
    body = {
        "model": "fake/model",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
    }
    with app.http.stream(
        "POST", "/chat/completions", json=body, headers=app.paid_by(user)
    ) as answer:
        assert answer.status_code == 200
        yield answer.iter_lines()


async def test_removal_ends_a_stream_and_deletes_the_key(
    router: FakeOpenRouter, app: App, store: Store
) -> None:
    alice = await new_paying(router, app, store, "alice")
    bob = await new_paying(router, app, store, "bob")
    router.hang_after = 1
    with (
        open_stream(app, "alice") as lines,
        open_stream(app, "bob") as of_bob,
        Browser(app.service, alice.signed_in.cookie) as browser,
    ):
        assert "one" in next(lines)
        assert "one" in next(of_bob)
        path = f"/funding/{alice.funding_id}/remove"
        browser.follow(browser.send(browser.get(path).form("Remove")))
        rest = "".join(lines)
        assert "not_connected" in rest
        assert "[DONE]" not in rest
    table = schema.funding
    row = await store.transact(
        lambda sql: sql.execute(select(table).where(table.c.id == alice.funding_id)).one()
    )
    assert (row.state, row.ciphertext, row.encryption_key_id) == ("removed", None, None)
    assert app.status("alice")["connected"] is False
    assert app.status("bob")["connected"] is True
    sent = len(router.upstream.calls)
    assert chat(app, "alice").status_code == 402
    assert len(router.upstream.calls) == sent
    assert await state_of(store, bob.funding_id) == "valid"


# -- the true cost


async def test_record_is_read_with_the_key_that_paid(
    router: FakeOpenRouter, app: App, store: Store
) -> None:
    alice = await new_paying(router, app, store, "alice")
    router.hang_after = 1
    with open_stream(app, "alice") as lines:
        assert "one" in next(lines)
    eventually(lambda: app.status("alice")["usage"]["monthlyUsd"] == float(router.cost))
    asked = {question.headers["authorization"] for question in router.upstream.questions}
    assert asked == {f"Bearer {alice.key.key}"}


async def test_record_is_read_with_the_key_that_paid_after_a_crash(
    router: FakeOpenRouter, tmp_path: Path, database: str
) -> None:
    with serving(tmp_path, router, database=database) as service, service.app() as app:
        async with store_of(database) as store:
            alice = await new_paying(router, app, store, "alice")
        router.hang_after = 1
        with open_stream(app, "alice") as lines:
            assert "one" in next(lines)
            table = schema.reservations
            async with store_of(database) as store:
                # The generation's id is recorded at the next renewal.
                async with asyncio.timeout(PATIENCE):
                    while not await store.transact(
                        lambda sql: sql.execute(select(table.c.generation_id)).scalar_one_or_none()
                    ):
                        await asyncio.sleep(0.02)
            service.process.send_signal(signal.SIGKILL)
            service.process.wait(PATIENCE)
        keys = app.keys
    with serving(tmp_path, router, database=database) as service, App(service, keys) as app:
        eventually(lambda: app.status("alice")["usage"]["monthlyUsd"] == float(router.cost))
    asked = {question.headers["authorization"] for question in router.upstream.questions}
    assert asked == {f"Bearer {alice.key.key}"}


# -- the funding that the operator offers


async def test_without_operator_funding_only_payers_pay(
    router: FakeOpenRouter, tmp_path: Path
) -> None:
    options = ("--funding", "openrouter,key")
    with (
        serving(tmp_path, router, *options, WATTFARE_UPSTREAM_KEY=OPERATOR) as service,
        service.app() as app,
    ):
        app.connect("carol", monthlyUsd=1)
        answer = chat(app, "carol")
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "funding_invalid")
        assert app.status("carol")["usage"]["monthlyUsd"] == 0
        async with store_of(service.database) as store:
            alice = await new_paying(router, app, store, "alice")
        assert chat(app, "alice").status_code == 200
    assert sent_keys(router) == [f"Bearer {alice.key.key}"]


def test_with_operator_funding_only_keys_cannot_be_added(
    router: FakeOpenRouter, tmp_path: Path
) -> None:
    options = ("--funding", "operator", "--user-ceiling-usd", "1")
    variables = {"WATTFARE_UPSTREAM_KEY": OPERATOR, "WATTFARE_ENCRYPTION_KEY": ""}
    with serving(tmp_path, router, *options, **variables):
        assert not (tmp_path / f"wattfare.db{FILE_SUFFIX}").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--funding", "key"), "an --upstream"),
        (("--funding", "gold", "--upstream", "https://x.example/v1"), "'gold' is unknown"),
        (("--funding", "openrouter", "--upstream", "https://x.example/v1"), "OpenRouter as the"),
        (("--funding", "operator", "--upstream", "https://openrouter.ai/api/v1"), "--upstream-key"),
    ],
)
def test_impossible_funding_stops_the_start(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    database = f"sqlite:///{tmp_path / 'wattfare.db'}"
    run = invoke_cli("serve", "--port", "0", "--database", database, *options)
    assert run.exit_code != 0
    assert words in run.stderr


def test_postgresql_needs_the_variable_if_funding_is_named(
    router: FakeOpenRouter, cluster: Any
) -> None:
    run = invoke_cli(
        "serve",
        "--port",
        "0",
        "--database",
        cluster.database(),
        "--upstream",
        router.url,
        "--funding",
        "key",
    )
    assert run.exit_code != 0
    assert "With PostgreSQL, the keys of payers need WATTFARE_ENCRYPTION_KEY" in run.stderr


# -- where a key could appear


async def test_key_never_appears(router: FakeOpenRouter, tmp_path: Path, database: str) -> None:
    """Payers' keys appear in no log, database, answer, argument or file, even if the upstream
    repeats them."""
    shown: list[str] = []
    with (
        serving(tmp_path, router, *OPTIONS, database=database, **VARIABLES) as service,
        service.app() as app,
    ):
        async with store_of(database) as store:
            keys = await _use_keys(router, app, store, shown)
            assert service.stop() == 0
            data = await _all_that_is_kept(store, database, tmp_path)
    data += "\n".join([*shown, *service.log]).encode()
    for key in keys:
        assert key not in data
        assert key[-40:] not in data
        assert b64encode(key)[4:-4] not in data
        assert key.hex().encode() not in data


async def _use_keys(
    router: FakeOpenRouter, app: App, store: Store, shown: list[str]
) -> list[bytes]:
    alice = await new_paying(router, app, store, "alice")
    person = router.person("bob")
    signed_in = await new_payer(store)
    with Browser(app.service, signed_in.cookie) as browser:
        form = browser.get("/funding").form("Connect OpenRouter")
        answer = browser.get(router.allow(browser.send(form).headers["location"], person))
        shown.append(answer.answer.text)
        bob = router.keys_of(person)[-1]
        await connect(store, app, "bob", signed_in.payer_id, answer.link("Remove").split("/")[2])
    said: list[int] = []

    def repeats(exchange: Exchange) -> bool:
        if not exchange.path.endswith("/chat/completions"):
            return False
        key = exchange.headers["authorization"].removeprefix("Bearer ")
        if exchange.json.get("stream"):
            exchange.start_stream()
            exchange.word(f"Bearer {key} ")
            exchange.done()
            return True
        said.append(1)
        if len(said) % 3 == 0:
            exchange.answer({"error": {"message": f"bad key {key}", "code": 400}}, status=400)
        elif len(said) % 3 == 1:
            exchange.answer({**completion_of(f"Bearer {key}", usage={}), "debug": key})
        else:
            exchange.answer({"error": {"message": f"bad key {key}", "code": 401}}, status=401)
        return True

    assert chat(app, "alice").status_code == 200
    assert chat(app, "bob").status_code == 200
    router.upstream.first = lambda exchange: repeats(exchange) or router.answer(exchange)
    for user in ("alice", "bob"):
        answer = chat(app, user, stream=True)
        assert "[DONE]" in answer.text
        shown.append(answer.text)
        for _ in range(3):
            answer = chat(app, user)
            shown += [answer.text, str(answer.headers)]
    assert len(said) >= 4
    shown.append(Path(f"/proc/{app.service.process.pid}/cmdline").read_text())
    return [key.encode() for key in (alice.key.key, bob.key, ENCRYPTION_KEY)]


async def _all_that_is_kept(store: Store, database: str, folder: Path) -> bytes:
    if database.startswith("sqlite"):
        return b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())
    data = b""
    for table in schema.metadata.sorted_tables:
        found = await store.transact(lambda sql, table=table: sql.execute(select(table)).all())
        values = (value for row in found for value in row)
        data += b"".join(
            bytes(value) if isinstance(value, (bytes, memoryview)) else str(value).encode()
            for value in values
        )
    return data
