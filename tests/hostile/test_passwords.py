"""Passwords of databases and of Redis never appear in a process list, log, error or frame."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import trustme
from support.cli import invoke_cli
from support.http_client import fetch
from support.patience import PATIENCE
from support.ports import free_port, refused_port
from support.postgres import Cluster, install, run_cluster
from support.service import bearer, eventually, run_service, start_command

from wattfare_mw.cli.commands import cli
from wattfare_mw.cli.process_list import split, variable_of
from wattfare_mw.errors import WattfareError
from wattfare_mw.service import Settings, create_keys
from wattfare_mw.service.api.rate_limits import RateLimits
from wattfare_mw.service.ledger.databases import migrate_database, open_store, read_database
from wattfare_mw.service.ledger.postgresql import address
from wattfare_mw.service.ledger.postgresql import store as postgresql_store
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.service.tokens import Session, Signer

PASSWORD = "hunter2-p4ssw0rd"
NOWHERE = f"127.0.0.1:{refused_port()}"


# -- a PostgreSQL that requires passwords and speaks TLS


@pytest.fixture(scope="module")
def secured() -> Iterator[Cluster]:
    with run_cluster() as cluster:
        data = cluster.folder / "data"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(cluster.folder / "ca.pem"))
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.cert_chain_pems[0].write_to_path(str(data / "server.crt"))
        certificate.private_key_pem.write_to_path(str(data / "server.key"))
        (data / "server.key").chmod(0o600)
        if os.geteuid() == 0:
            for name in ("server.crt", "server.key"):
                shutil.chown(data / name, "postgres", "postgres")
            cluster.folder.chmod(0o755)
            (cluster.folder / "ca.pem").chmod(0o644)
        rules = data / "pg_hba.conf"
        lines = [f"host all {role} 127.0.0.1/32 {how}" for role, how in ROLES.items()]
        rules.write_text("\n".join([*lines, rules.read_text()]))
        cluster.execute("ALTER SYSTEM SET ssl = on")
        for role, how in ROLES.items():
            cluster.execute(
                f"SET password_encryption = '{how}'; CREATE ROLE {role} LOGIN"
                f" SUPERUSER PASSWORD '{PASSWORD}'"
            )
        cluster.execute("SELECT pg_reload_conf()")
        yield cluster


ROLES = {"scram": "scram-sha-256", "md5": "md5"}


@pytest.fixture
def place(secured: Cluster) -> str:
    """Returns host, port and name of a new database."""
    return secured.empty_database().partition("@")[2]


@pytest.fixture(scope="module")
def migrated(secured: Cluster) -> str:
    """The same for a database with the current schema."""
    place = secured.empty_database().partition("@")[2]
    migrate_database(f"postgresql://scram:{PASSWORD}@{place}")
    return place


# -- URLs in the form that hosting providers give


@pytest.mark.parametrize("role", ROLES)
def test_database_password_is_used(place: str, role: str) -> None:
    url = f"postgresql://{role}:{PASSWORD}@{place}"
    migrate_database(url)
    keys = create_keys(url, "app")
    assert read_database(url, verify) == []

    async def use() -> None:
        store = await open_store(url)
        try:
            assert await store.app_by_id(keys.app_id) is not None
            assert await store.connect(keys.app_id, "u1", 5)
        finally:
            await store.close()

    asyncio.run(use())


@pytest.mark.parametrize(
    ("scheme", "query"),
    [
        ("postgres", ""),
        ("postgresql+asyncpg", ""),
        ("postgresql+psycopg2", ""),
        ("postgres", "sslmode=require"),
        ("postgresql", "sslmode=disable"),
        ("postgresql", "sslmode=prefer"),
        ("postgresql", "sslmode=no-verify"),
        ("postgresql", "ssl=true"),
        ("postgresql", "ssl=require"),
        ("postgresql", "sslmode=verify-full&sslrootcert={ca}"),
        ("postgresql", "channel_binding=require"),
        ("postgresql", "sslmode=require&channel_binding=require"),
        ("postgresql", "sslmode=prefer&channel_binding=prefer"),
        ("postgresql", "connect_timeout=10&application_name=x"),
        ("postgresql", "connect_timeout=0"),
        ("postgresql", "options=-csearch_path%3Dpublic"),
        ("postgresql", "search_path=public&statement_timeout=5000"),
        ("postgresql", "keepalives=1&keepalives_idle=30&gssencmode=disable&sslsni=1"),
        ("postgresql", "target_session_attrs=read-write"),
        ("postgresql", "pgbouncer=true"),
        ("postgresql", "pgbouncer=true&connect_timeout=15&sslmode=require"),
        ("postgresql+asyncpg", "prepared_statement_cache_size=0"),
    ],
)
def test_url_parameters_of_hosting_providers_work(
    secured: Cluster, migrated: str, scheme: str, query: str
) -> None:
    query = query.format(ca=secured.folder / "ca.pem")
    url = f"{scheme}://scram:{PASSWORD}@{migrated}?{query}".rstrip("?")
    again = invoke_cli("migrate", "--database", url)
    assert again.exit_code == 0, again.stderr
    made = invoke_cli("apps", "create", "a", env={"WATTFARE_DATABASE": url})
    assert made.exit_code == 0, made.stderr
    asyncio.run(_spend(url))
    assert read_database(url, verify) == []


async def _spend(url: str) -> None:
    from wattfare_mw.service.keys import new_app
    from wattfare_mw.service.records import Bounds, InferenceCall, Outcome, Terms

    app, _ = new_app("app", "test")
    store = await open_store(url)
    try:
        await store.add_app(app)
        assert await store.connect(app.id, "u1", 100)
        assert (await store.renew()).held
        for number in range(12):
            call = InferenceCall(
                id=f"{app.id}{number}",
                app_id=app.id,
                user_id="u1",
                model="m",
                bounds=Bounds(5, 5),
                request_id="r",
            )
            assert (await store.reserve(call, Terms())).amount == 5
            outcome = Outcome(ended="completed", generated=True, cost=4)
            assert await store.settle(call.id, call.account, outcome) == 4
        assert (await store.account(app.id, "u1"))[1].billed == 48
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("foo=1", "'foo'"),
        ("schema=public", "'schema'"),
        ("require_auth=scram-sha-256", "'require_auth'"),
        ("hostaddr=127.0.0.1", "'hostaddr'"),
        ("gssencmode=require", "`gssencmode`"),
        ("load_balance_hosts=random", "`load_balance_hosts`"),
        ("sslmode=sometimes", "`sslmode`"),
        ("sslnegotiation=x", "`sslnegotiation`"),
        ("channel_binding=always", "`channel_binding`"),
        ("connect_timeout=soon", "`connect_timeout`"),
        ("pgbouncer=maybe", "`pgbouncer`"),
        ("statement_cache_size=100", "`statement_cache_size`"),
        ("client_encoding=latin1", "`client_encoding`"),
    ],
)
def test_error_names_an_unsupported_url_parameter(query: str, named: str) -> None:
    answer = invoke_cli("migrate", "--database", f"postgresql://u:{PASSWORD}@{NOWHERE}/db?{query}")
    assert answer.exit_code == 1
    assert named in answer.stderr
    assert PASSWORD not in answer.output


def test_channel_binding_requires_a_checked_certificate(
    secured: Cluster, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Treats the database as if it were on another machine."""
    monkeypatch.setattr(address, "_is_local", lambda _: False)
    url = f"postgresql://scram:{PASSWORD}@{place}?sslmode=require&channel_binding=require"
    with pytest.raises(WattfareError, match=r"certificate.*`channel_binding=require`"):
        migrate_database(url)
    migrate_database(f"{url}&sslrootcert={secured.folder / 'ca.pem'}")
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.folder / "ca.pem"))
    migrate_database(url)
    with pytest.raises(WattfareError, match="needs TLS"):
        migrate_database(url.replace("sslmode=require", "sslmode=disable"))


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(("", True), ("localhost:5432", True), ("127.0.0.1", True), ("[::1]:5432", True)),
        *(("::1", True), ("/run/postgresql", True), ("%2Frun%2Fpostgresql", True)),
        *(("db.example.com", False), ("10.0.0.5:5432", False), ("fe80::1", False), ("::2", False)),
        ("localhost.example.com", False),
    ],
)
def test_local_hosts_are_recognized(host: str, local: bool) -> None:
    assert address._is_local(host) is local


# -- behind a pooler that may give each transaction another session


@pytest.fixture
def pooler(secured: Cluster, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """PgBouncer in transaction mode with two sessions. Yields a function that gives the URL of a
    database."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None and os.environ.get("CI"):
        install("pgbouncer")
        program = "/usr/sbin/pgbouncer"
    if program is None:
        pytest.skip("PgBouncer is not installed. To run the rest: apt-get install pgbouncer.")
    port = free_port()
    users = tmp_path / "users.txt"
    users.write_text(f'"scram" "{PASSWORD}"\n')
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        f"""[databases]
* = host=127.0.0.1 port={secured.port} user=scram password={PASSWORD}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = 2
server_round_robin = 1
"""
    )
    command = [program, str(config)]
    if os.geteuid() == 0:
        for path in (tmp_path, users, config):
            shutil.chown(path, "postgres", "postgres")
        for folder in list(tmp_path.parents)[:-2]:
            folder.chmod(folder.stat().st_mode | 0o011)
        command = ["runuser", "-u", "postgres", "--", *command]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        import socket

        def listens() -> bool:
            assert process.poll() is None
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        eventually(listens)
        yield lambda name: f"postgresql://scram:{PASSWORD}@127.0.0.1:{port}/{name}?pgbouncer=true"
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_service_works_behind_a_pooler(place: str, pooler: Callable[[str], str]) -> None:
    url = pooler(place.rpartition("/")[2])
    migrate_database(url)

    async def at_once() -> None:
        await asyncio.gather(*(_spend(url) for _ in range(6)))

    asyncio.run(at_once())
    assert read_database(url, verify) == []


# -- errors do not reveal a password


def urls_that_fail() -> dict[str, str]:
    special = f"{PASSWORD}/x#y@z:1"
    return {
        "unreachable": f"postgresql://ada:{PASSWORD}@{NOWHERE}/db",
        "unknown host": f"postgresql://ada:{PASSWORD}@no-such-host.invalid/db",
        "in the query": f"postgresql://{NOWHERE}/db?user=ada&password={PASSWORD}",
        "of another database": f"mysql://ada:{PASSWORD}@{NOWHERE}/db",
        "no port": f"postgresql://ada:{PASSWORD}@127.0.0.1:port/db",
        "no port, two hosts": f"postgresql://ada:{PASSWORD}@a:1,b:{PASSWORD}/db",
        "a large port": f"postgresql://ada:{PASSWORD}@127.0.0.1:99999/db",
        "special characters": f"postgresql://ada:{special}@{NOWHERE}/db",
        "a question mark": f"postgresql://ada:1?{PASSWORD}@{NOWHERE}/db",
        "a name in the password": f"postgresql://ada:1?{PASSWORD}=x@{NOWHERE}/db",
        "a slash": f"postgresql://ada:1/{PASSWORD}@{NOWHERE}/db",
        "a hash": f"postgresql://ada:1#{PASSWORD}@{NOWHERE}/db",
        "brackets": f"postgresql://ada:[{PASSWORD}@{NOWHERE}/db",
        "unicode": f"postgresql://ada:{PASSWORD}\u2100@{NOWHERE}/db",
        "no scheme": f"ada:{PASSWORD}@{NOWHERE}/db",
        "of SQLite, a parameter": f"sqlite:////no/such/x.db?password={PASSWORD}",
        "of SQLite, no port": f"sqlite://ada:{PASSWORD}@h:{PASSWORD}/x.db",
    }


def everything_in(error: BaseException) -> str:
    """Everything that a traceback reporter may show: messages, reprs, and variables of frames."""
    told: list[str] = ["".join(traceback.format_exception(error))]
    queue: list[BaseException | None] = [error]
    seen: set[int] = set()
    while queue:
        inner = queue.pop()
        if inner is None or id(inner) in seen:
            continue
        seen.add(id(inner))
        queue += [inner.__cause__, inner.__context__]
        told += [str(inner), repr(inner), repr(inner.args)]
        for frame, _ in traceback.walk_tb(inner.__traceback__):
            if "tests" not in Path(frame.f_code.co_filename).parts:
                told += [repr(value) for value in frame.f_locals.values()]
                told += [repr(getattr(value, "__dict__", "")) for value in frame.f_locals.values()]
    return "\n".join(told)


JOBS: dict[str, Callable[[str], Any]] = {
    "open": lambda url: asyncio.run(open_store(url)),
    "migrate": migrate_database,
    "read": lambda url: read_database(url, verify),
    "create": lambda url: create_keys(url, "app"),
}


@pytest.mark.parametrize("name", urls_that_fail())
@pytest.mark.parametrize("job", [*JOBS, "serve"])
def test_error_of_an_unusable_database_hides_the_password(name: str, job: str, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    url = urls_that_fail()[name]
    if job == "serve":
        answer = invoke_cli("serve", "--port", "0", "--database", url)
        assert isinstance(answer.exception, SystemExit)
        assert "Error: " in answer.stderr
        told = answer.output
    else:
        with pytest.raises(WattfareError) as raised:
            JOBS[job](url)
        told = everything_in(raised.value) + str(raised.value.to_wire())
    assert PASSWORD not in told
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("role", ROLES)
def test_error_of_a_wrong_password_hides_the_password(place: str, role: str) -> None:
    wrong = f"wrong-{PASSWORD}"
    with pytest.raises(WattfareError, match="password authentication failed") as raised:
        migrate_database(f"postgresql://{role}:{wrong}@{place}")
    assert PASSWORD not in everything_in(raised.value)


async def test_error_of_a_silent_database_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_store, "CONNECT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/db"
        with pytest.raises(WattfareError, match="it did not answer in time") as raised:
            await open_store(url)
    assert PASSWORD not in everything_in(raised.value)


async def test_error_of_a_dropped_database_hides_the_password(place: str, secured: Cluster) -> None:
    url = f"postgresql://scram:{PASSWORD}@{place}"
    await asyncio.to_thread(migrate_database, url)
    store = await open_store(url)
    name = place.rpartition("/")[2]
    await asyncio.to_thread(secured.execute, f"DROP DATABASE {name} WITH (FORCE)")
    for job in (store.app_by_id("x"), store.account("x", "u"), store.connect("x", "u", 1)):
        with pytest.raises(WattfareError) as raised:
            await job
        assert raised.value.status == 503
        assert PASSWORD not in everything_in(raised.value)
    await store.close()


REDIS = {
    "unreachable": f"redis://ada:{PASSWORD}@{NOWHERE}/0",
    "without a user": f"redis://:{PASSWORD}@{NOWHERE}",
    "in the query": f"redis://{NOWHERE}?password={PASSWORD}",
    "over TLS": f"rediss://:{PASSWORD}@{NOWHERE}/0",
    "no port": f"redis://:{PASSWORD}@127.0.0.1:port",
    "a slash": f"redis://:{PASSWORD}/x@{NOWHERE}",
    "a hash": f"redis://:1#{PASSWORD}@{NOWHERE}",
    "brackets": f"redis://:[{PASSWORD}@{NOWHERE}",
    "of another kind": f"memcached://:{PASSWORD}@{NOWHERE}",
}


@pytest.mark.parametrize("name", REDIS)
async def test_error_of_an_unusable_redis_hides_the_password(name: str) -> None:
    pytest.importorskip("redis")
    with pytest.raises(WattfareError) as raised:
        await RateLimits(REDIS[name]).session("app", "u1")
    assert PASSWORD not in everything_in(raised.value) + raised.value.message


async def test_error_of_a_redis_authentication_hides_the_password(redis_url: str) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(redis_url)
    user = "joan"
    await client.acl_setuser(  # type: ignore[no-untyped-call]
        user, enabled=True, passwords=[f"+{PASSWORD}"], commands=["+@all"], keys=["*"]
    )
    try:
        place = redis_url.removeprefix("redis://")
        for url in (
            f"redis://{user}:{PASSWORD}@{place}/0",
            f"redis://{place}?username={user}&password={PASSWORD}",
        ):
            limits = RateLimits(url)
            await limits.session("app", PASSWORD)
            await limits.close()
        limits = RateLimits(f"redis://{user}:wrong-{PASSWORD}@{place}/0")
        with pytest.raises(WattfareError) as raised:
            await limits.session("app", "u1")
        await limits.close()
        assert raised.value.status == 503
        assert PASSWORD not in everything_in(raised.value)
    finally:
        await client.acl_deluser(user)  # type: ignore[no-untyped-call]
        await client.aclose()


def test_repr_of_settings_and_signers_hides_secrets() -> None:
    settings = Settings(
        database=f"postgresql://ada:{PASSWORD}@h/db",
        upstream="http://h/v1",
        upstream_key=PASSWORD,
        rate_limit_storage=f"redis://:{PASSWORD}@h",
        secret=PASSWORD.encode() * 3,
    )
    shown = [repr(getattr(settings, name)) for name in Settings.__struct_fields__]
    assert PASSWORD not in "".join([*shown, repr(settings), str(settings)])
    for fault in (
        lambda: Settings(secret=PASSWORD.encode()),
        lambda: Signer(PASSWORD.encode()),
        lambda: Signer(PASSWORD.encode() * 2).read("x.y.z"),
        lambda: Signer(PASSWORD.encode() * 2).read(
            Signer(b"k" * 32).mint(Session("a", "u", None)).token
        ),
    ):
        with pytest.raises(WattfareError) as raised:
            fault()
        assert PASSWORD not in everything_in(raised.value)


# -- the process list and the environment


def process_list() -> str:
    """The arguments of all processes of this machine."""
    lines: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(lines)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc")
def test_process_list_shows_no_password(tmp_path: Path, migrated: str, redis_url: str) -> None:
    database = f"postgresql://scram:{PASSWORD}@{migrated}"
    # With a user: Redis refuses a lone password if it has none itself.
    storage = f"{redis_url}?client_name={PASSWORD}&username=default&password=x"
    options = ["--upstream", f"http://{NOWHERE}/v1", "--user-ceiling-usd", "5"]
    options += [f"--rate-limit-storage={storage}", "--upstream-key", f"sk-{PASSWORD}"]
    # `run_service` passes `--database` as an argument.
    with (
        run_service(tmp_path, *options, database=database, forked=False) as service,
        service.app() as app,
    ):
        assert app.http.get("/connections", headers=bearer("x")).status_code == 401
        arguments = process_list()
        assert "--user-ceiling-usd" in arguments
        assert PASSWORD not in arguments
        assert service.stop() == 0
    assert PASSWORD not in "".join(service.log)


@pytest.mark.parametrize(
    ("arguments", "kept", "variables"),
    [
        ("serve", "serve", {}),
        ("migrate --database sqlite:///x.db", "migrate --database sqlite:///x.db", {}),
        ("migrate --database=pg://u@h/d", "migrate --database=pg://u@h/d", {}),
        ("migrate --database pg://u:p@h/d", "migrate", {"WATTFARE_DATABASE": "pg://u:p@h/d"}),
        (
            "migrate --database=pg://h?password=p",
            "migrate",
            {"WATTFARE_DATABASE": "pg://h?password=p"},
        ),
        ("apps create -- --database=pg://u:p@h", "apps create -- --database=pg://u:p@h", {}),
        ("migrate --database", "migrate --database", {}),
        ("serve --upstream-key k", "serve --upstream-key k", {}),
        (
            "serve --upstream u --upstream-key k",
            "serve --upstream u",
            {"WATTFARE_UPSTREAM_KEY": "k"},
        ),
        ("serve --database pg://u:p@h --database sqlite:///x", "serve --database sqlite:///x", {}),
    ],
)
def test_secret_arguments_become_variables(
    arguments: str, kept: str, variables: dict[str, str]
) -> None:
    assert split(arguments.split()) == (kept.split(), variables)


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


def test_every_option_has_a_variable() -> None:
    for _, command in commands(cli):
        if not any(parameter.name == "database" for parameter in command.params):
            continue
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.envvar == variable_of(option.opts[0])
    [serve] = [command for path, command in commands(cli) if path == ("serve",)]
    assert {option.envvar for option in serve.params if isinstance(option, click.Option)} >= {
        *("WATTFARE_DATABASE", "WATTFARE_UPSTREAM_KEY", "WATTFARE_RATE_LIMIT_STORAGE"),
        *("WATTFARE_HOST", "WATTFARE_PORT", "WATTFARE_METRICS", "WATTFARE_STOP_GRACE"),
    }


def test_white_space_around_a_variable_is_ignored(tmp_path: Path) -> None:
    """A line end in the URL of the database would name another file."""
    database = f"sqlite:///{tmp_path / 'env.db'}"
    env = {"WATTFARE_DATABASE": f"{database}\r\n", "WATTFARE_JSON": " true\n"}
    assert invoke_cli("apps", "create", "a", "--new", env=env).exit_code == 0
    assert [file.name for file in tmp_path.iterdir() if "env" in file.name] == ["env.db"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "DATABASE": f" {database}\n",
            "HOST": "::1 \n",
            "STOP_GRACE": " ",
        }.items():
            patch.setenv(f"WATTFARE_{name}", value)
        params = cli.commands["serve"].make_context("serve", []).params
    assert (params["database"], params["host"], params["stop_grace"]) == (database, "::1", 10.0)


def test_variables_replace_options(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'env.db'}"
    env = {
        "WATTFARE_DATABASE": database,
        "WATTFARE_PORT": "0",
        "WATTFARE_METRICS": "true",
        "WATTFARE_LOG_LEVEL": "warning",
        "WATTFARE_DEFAULT_MAX_TOKENS": "3",
        # Unused here: there is no upstream.
        "WATTFARE_UPSTREAM_KEY": "k",
        "WATTFARE_USER_CEILING_USD": "5",
    }
    made = invoke_cli("apps", "create", "a", "--new", env={**env, "WATTFARE_JSON": "1"})
    assert made.exit_code == 0, made.stderr
    assert '"secretKey"' in made.stdout
    process = start_command(["serve"], env, forked=True)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as stdout, process.stderr:
        url = stdout.readline().split("listening on ")[1].strip()
        metrics = fetch(f"{url}/metrics")
        assert metrics.status_code == 200
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert invoke_cli("ledger", "verify", env={"WATTFARE_DATABASE": database}).exit_code == 0
    refused = invoke_cli("serve", env={**env, "WATTFARE_PORT": "x"})
    assert refused.exit_code == 2
    assert "WATTFARE_PORT" in refused.stderr
