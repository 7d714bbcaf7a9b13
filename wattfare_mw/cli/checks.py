"""The checks of ``wattfare doctor``. Each check returns a finding that says what to do."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import msgspec

from ..calls import DEFAULT_BASE_URL, USER_AGENT, payer_of
from ..errors import WattfareError
from ..service import Settings
from ..service.keys import app_id_of
from ..service.ledger.apps import LOCAL_HOSTS, find_app
from ..service.ledger.databases import backend_of, read_database
from ..service.models.upstream import Upstream
from ..sse import CONTENT_TYPE
from ..transport import Secret, header_key, hidden
from ..types import decode_raw
from .places import new_file, where

State = Literal["ok", "warn", "fail", "skip"]

#: How long the service may take to answer, in seconds.
TIMEOUT = 10.0
#: Clock differences, in seconds. Above the first one, the check warns. Above the second one, it
#: fails. Smaller differences are normal, because a ``Date`` header has whole seconds.
CLOCK_OK, CLOCK_MOST = 5, 30
#: The monthly cap of the test user, in USD.
CAP_USD = 1
USER = "wattfare-doctor"
#: A built-in model that pauses before each word, so the events of its stream arrive separately.
SLOW_MODEL = "wattfare/echo-slow"
WORDS = "one two three four five six seven eight"
#: The events of a stream must be spread over at least this part of its duration. Otherwise, a proxy
#: buffers the stream.
LEAST_SPREAD = 0.3
SHOWN_MODELS = 5


class Finding(msgspec.Struct, frozen=True):
    """The result of one check.

    Attributes:
        todo: what to do. Empty if nothing is wrong.
    """

    name: str
    state: State
    says: str
    todo: str = ""


class Service:
    """Checks the service in the app's environment variables.

    Args:
        key: the value of ``WATTFARE_SECRET_KEY``. None if it is not set.
        base_url: the value of ``WATTFARE_BASE_URL``. None if it is not set.
    """

    def __init__(self, key: str | None, base_url: str | None) -> None:
        self._given_key = hidden(key)
        self._key = header_key(key) if key else None
        self._is_default = not base_url
        self.base_url = (base_url or DEFAULT_BASE_URL).rstrip("/").removesuffix("/api/v1")
        self.app_id = app_id_of(self._key) if self._key else None
        self.slow_model: str | None = None
        self._accepted = False
        self._http = httpx.Client(timeout=TIMEOUT, headers={"user-agent": USER_AGENT})

    @classmethod
    def from_environment(cls, base_url: str | None) -> Service:
        """Read the environment variables in the same way as an app."""
        return cls(
            os.environ.get("WATTFARE_SECRET_KEY"), base_url or os.environ.get("WATTFARE_BASE_URL")
        )

    def __repr__(self) -> str:
        return f"Service({self.base_url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run(self) -> Iterator[Finding]:
        """Check the key, the address and the clock."""
        yield self._check_form()
        address = _fault_in(self.base_url, self._is_default)
        if address is not None:
            yield address
            return
        began = time.time()
        try:
            answer = self._get("/status?appUserId=" + USER)
        except httpx.HTTPError as error:
            yield self._unreachable(error)
            return
        took = time.time() - began
        yield self._check_address(answer)
        if not _is_wattfare(answer):
            return
        if self._key is not None:
            yield self._check_key(answer)
        yield _check_clock(answer, began + took / 2)

    def _check_form(self) -> Finding:
        """Check that the value has the form of a secret key."""
        key = self._given_key
        export = "Type: export WATTFARE_SECRET_KEY=sk_…"
        hint = f"{export} `wattfare dev` and `wattfare apps create NAME` print a key."
        if not key or not key.strip():
            return Finding("key", "fail", "WATTFARE_SECRET_KEY is not set.", hint)
        if key.strip().startswith("pk_"):
            self._key = None
            says = "WATTFARE_SECRET_KEY is a publishable key. Publishable keys are for web pages."
            return Finding("key", "fail", says, hint)
        if self._key is None or not self._key.startswith(("sk_test_", "sk_live_")):
            self._key = None  # do not send it
            quotes = " Leave out the quotes." if key.strip()[0] in "\"'" else ""
            says = (
                "WATTFARE_SECRET_KEY is not a secret key: it must begin with sk_test_ or sk_live_."
            )
            return Finding("key", "fail", says + quotes, hint)
        mode = self._key[3:7]
        return Finding("key", "ok", f"WATTFARE_SECRET_KEY is the secret key of a {mode} app.")

    def _get(self, path: str) -> httpx.Response:
        headers = {"authorization": Secret(f"Bearer {self._key}")} if self._key else {}
        return self._http.get(f"{self.base_url}/api/v1{path}", headers=headers)

    def _unreachable(self, error: httpx.HTTPError) -> Finding:
        says = f"{self.base_url} cannot be reached: {type(error).__name__}."
        host = urlsplit(self.base_url).hostname or ""
        todo = "Check WATTFARE_BASE_URL, and check that the service is running."
        if _chain_has(error, "WRONG_VERSION_NUMBER", "record layer"):
            says = f"{self.base_url} does not use TLS."
            todo = f"Type: export WATTFARE_BASE_URL=http://{self.base_url.partition('://')[2]}"
        elif isinstance(error, httpx.ConnectError) and host in LOCAL_HOSTS:
            says = f"Nothing listens at {self.base_url}."
            todo = "Start the service with `wattfare dev`. It prints the address to export."
        elif isinstance(error, httpx.ConnectError) and self._is_default:
            todo = (
                "WATTFARE_BASE_URL is not set. To use your own service, type: export"
                " WATTFARE_BASE_URL=http://127.0.0.1:8787"
            )
        elif isinstance(error, httpx.TimeoutException):
            says = f"{self.base_url} did not answer within {TIMEOUT:g} seconds."
        return Finding("address", "fail", says, todo)

    def _check_address(self, answer: httpx.Response) -> Finding:
        url = self.base_url
        target = answer.headers.get("location", "")
        if answer.is_redirect:
            says = f"{url} redirects to another address. Clients do not send a key to a redirect."
            new = target.partition("/api/v1/")[0]
            todo = "Set WATTFARE_BASE_URL to the address that it redirects to."
            if new.startswith(("http://", "https://")):
                todo = f"Type: export WATTFARE_BASE_URL={new[:200]}"
            return Finding("address", "fail", says, todo)
        if not _is_wattfare(answer):
            says = f"{url} answers {answer.status_code}, but is not a Wattfare service."
            todo = "Check WATTFARE_BASE_URL: it must be the service's address, not your app's."
            if answer.status_code in (502, 503, 504):
                says = f"{url} answers {answer.status_code}: only a proxy is running."
                todo = "Start the service behind the proxy."
            return Finding("address", "fail", says, todo)
        parts = urlsplit(url)
        if self._is_default:
            says = f"WATTFARE_BASE_URL is not set, so the app calls {url}."
            todo = "To use your own service, type: export WATTFARE_BASE_URL=http://127.0.0.1:8787"
            return Finding("address", "warn", says, todo)
        if parts.scheme == "http" and parts.hostname not in LOCAL_HOSTS:
            says = f"{url} is a Wattfare service, but the key is sent without TLS."
            todo = "Use https:// unless the service is in your own network."
            return Finding("address", "warn", says, todo)
        return Finding("address", "ok", f"{url} is a Wattfare service.")

    def _check_key(self, answer: httpx.Response) -> Finding:
        if answer.status_code == 200:
            self._accepted = True
            return Finding("key", "ok", "The service accepts the key.")
        if answer.status_code == 401:
            todo = (
                "Use a key of this service: `wattfare dev` prints one, and so does `wattfare apps"
                " create NAME` with the --database of the service."
            )
            return Finding("key", "fail", "The service refuses the key.", todo)
        said = _message(answer)
        todo = "See the service's log for details."
        return Finding("key", "fail", f"The service answers {answer.status_code}: {said}", todo)

    def check_streaming(self, user: str | None, model: str | None) -> Finding:
        """Check that the events of a stream arrive one by one."""
        name = "streaming"
        if not self._accepted:
            return Finding(name, "skip", "Not checked, because the service cannot be used yet.")
        assert self._key is not None
        listed = self._models()
        self.slow_model = SLOW_MODEL if SLOW_MODEL in listed else None
        model = model or self.slow_model
        if model is None:
            todo = "Add --model, and --user with a connected user. The test call is billed."
            return Finding(
                name, "skip", "Not checked, because a call to the upstream costs money.", todo
            )
        if user is None:
            if not self._key.startswith("sk_test_"):
                todo = "Add --user with a connected user. The short test call is billed."
                return Finding(
                    name, "skip", "Not checked, because a live app has no test user.", todo
                )
            user = USER
            self._connect(user)
        headers = {
            "authorization": Secret(f"Bearer {self._key}"),
            "x-wattfare-user": payer_of(user).value,
        }
        url = f"{self.base_url}/api/v1/chat/completions"
        return _stream(self._http, name, url, headers, model)

    def _models(self) -> set[str]:
        try:
            data: list[dict[str, Any]] = self._get("/models").json()["data"]
            return {str(each.get("id")) for each in data}
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
            return set()

    def _connect(self, user: str) -> None:
        """Connect a user of a test app. Its session token needs no approval."""
        session = self._http.post(
            f"{self.base_url}/api/v1/sessions",
            json={"appUserId": user},
            headers={"authorization": Secret(f"Bearer {self._key}")},
        )
        if session.status_code == 200:
            self._http.post(
                f"{self.base_url}/api/v1/connections",
                json={"monthlyUsd": CAP_USD},
                headers={"authorization": Secret(f"Bearer {session.json()['token']}")},
            )


def _fault_in(url: str, is_default: bool) -> Finding | None:
    todo = "Type: export WATTFARE_BASE_URL=http://127.0.0.1:8787, or the address of your service."
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable, parts = False, None
    if not usable or any(char.isspace() or not char.isprintable() for char in url):
        says = "WATTFARE_BASE_URL is not a URL: it must begin with http:// or https://."
        return Finding("address", "fail", says, todo)
    if any(mark in url for mark in "?#@"):
        says = "WATTFARE_BASE_URL must not have a query, a fragment or a password."
        return Finding("address", "fail", says, todo)
    return None


def _chain_has(error: BaseException, *words: str) -> bool:
    inner: BaseException | None = error
    while inner is not None:
        if any(word in str(inner) for word in words):
            return True
        inner = inner.__cause__ or inner.__context__
    return False


def _is_wattfare(answer: httpx.Response) -> bool:
    """True if the answer is the protocol's JSON: a status, or an error with a code."""
    try:
        if answer.status_code == 200:
            return isinstance(decode_raw(answer.content).get("connected"), bool)
        error = decode_raw(answer.content)["error"]
        return "code" in error and "message" in error
    except (msgspec.MsgspecError, KeyError, TypeError):
        return False


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return "not a Wattfare response"


def _check_clock(answer: httpx.Response, now: float) -> Finding:
    try:
        there = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return Finding("clock", "skip", "Not checked, because the service's answer has no date.")
    # A Date header has whole seconds, so on average it is half a second early.
    apart = now - (there + 0.5)
    if abs(apart) <= CLOCK_OK:
        return Finding("clock", "ok", "The clock agrees with the service's.")
    which = "ahead of" if apart > 0 else "behind"
    says = f"The clock of this machine is {abs(apart):.0f} seconds {which} that of the service."
    todo = "Set both by NTP, for example: timedatectl set-ntp true."
    if abs(apart) > CLOCK_MOST:
        todo += (
            " With this difference, the service can refuse session tokens as expired or not"
            " yet valid."
        )
        return Finding("clock", "fail", says, todo)
    return Finding("clock", "warn", says, todo)


def _stream(
    http: httpx.Client, name: str, url: str, headers: dict[str, str], model: str
) -> Finding:
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": WORDS}],
    }
    accept = {"accept": CONTENT_TYPE, "accept-encoding": "identity"}
    times: list[float] = []
    began = time.monotonic()
    try:
        with http.stream("POST", url, json=body, headers={**headers, **accept}) as answer:
            if answer.status_code != 200:
                answer.read()
                says = f"A stream answers {answer.status_code}: {_message(answer)}"
                todo = "Connect this user, or name another with --user."
                return Finding(name, "fail", says, todo if answer.status_code == 402 else "")
            times.extend(time.monotonic() for block in answer.iter_raw() if b"data:" in block)
    except httpx.HTTPError as error:
        return Finding(name, "fail", f"A stream breaks: {type(error).__name__}.", "Try it again.")
    if not times:
        return Finding(
            name, "fail", "A stream has no events.", "Check the proxy in front of the service."
        )
    spread = (times[-1] - times[0]) / max(times[-1] - began, 1e-9)
    if spread >= LEAST_SPREAD:
        return Finding(name, "ok", "The events of a stream arrive one by one.")
    return Finding(
        name,
        "fail" if model == SLOW_MODEL else "warn",
        "A stream arrives all at once when it ends.",
        "A proxy in front of the service buffers the stream. In nginx, set: proxy_buffering off."
        " Compression also buffers streams.",
    )


def check_database(database: str, app_id: str | None, *, is_given: bool) -> Finding:
    """Check that the database has the schema of this version, and contains the app of the key.

    Args:
        is_given: False if the database is only the default.
    """
    name = "database"
    try:
        if new_file(database) is not None:
            says = f"There is no {where(database)}."
            if is_given:
                return Finding(
                    name, "fail", says, "Add --database with the database of your service."
                )
            todo = "Add --database to check your service's database."
            return Finding(name, "skip", f"Not checked: {says[0].lower()}{says[1:]}", todo)
        known = read_database(
            database, lambda sql: app_id is None or find_app(sql, app_id) is not None
        )
    except WattfareError as error:
        return Finding(name, "fail", error.message, _todo_of(error, database))
    if not known:
        says = f"{where(database)} has the right version, but your key's app is not in it."
        todo = (
            "Add --database with the database of your service, or use a key of an app in this"
            " database."
        )
        return Finding(name, "warn", says, todo)
    return Finding(name, "ok", f"{where(database)} has the right version.")


def _todo_of(error: WattfareError, database: str) -> str:
    if "older version" in error.message or "no tables" in error.message:
        sqlite = backend_of(database) == "sqlite"
        return "Start `wattfare serve` to upgrade it." if sqlite else "Type: wattfare migrate"
    return "Check --database."


def check_upstream(settings: Settings) -> Iterator[Finding]:
    """Check that the upstream answers and that each of its models has a price."""
    if settings.upstream is None:
        todo = "Add --upstream to check your service's upstream."
        yield Finding("upstream", "skip", "Not checked, because there is no upstream.", todo)
        return
    host = urlsplit(settings.upstream).netloc
    try:
        listed, unpriced = asyncio.run(_unpriced(settings))
    except WattfareError as error:
        todo = "Check --upstream, which usually ends with /v1, and WATTFARE_UPSTREAM_KEY."
        yield Finding("upstream", "fail", f"{host}: {error.message}", todo)
        return
    if not listed:
        todo = "Check --upstream, which usually ends with /v1, or set prices with --price."
        yield Finding("upstream", "warn", f"{host} lists no models.", todo)
        return
    yield Finding("upstream", "ok", f"{host} lists {listed} models.")
    if not unpriced:
        yield Finding("prices", "ok", "Each model has a price.")
        return
    shown = ", ".join(name[:100] for name in unpriced[:SHOWN_MODELS])
    more = ", …" if len(unpriced) > SHOWN_MODELS else ""
    yield Finding(
        "prices",
        "warn",
        f"{len(unpriced)} of {listed} models have no fixed price: {shown}{more}.",
        "The service may refuse their calls. Set a price, in USD per million tokens: --price"
        f" '{unpriced[0][:100]}=IN/OUT'",
    )


async def _unpriced(settings: Settings) -> tuple[int, list[str]]:
    assert settings.upstream is not None
    upstream = Upstream(
        settings.upstream,
        settings.upstream_key,
        prices=settings.prices,
        provider=settings.provider,
    )
    try:
        return await upstream.unpriced_models()
    finally:
        await upstream.close()


def check_app(app_url: str, cookie: str | None, model: str | None) -> Iterator[Finding]:
    """Check that the app answers Wattfare's paths and that a stream passes through."""
    url = app_url.rstrip("/")
    headers: dict[str, str] = {} if cookie is None else {"cookie": hidden(cookie)}
    with httpx.Client(timeout=TIMEOUT, headers={"user-agent": USER_AGENT}) as http:
        try:
            answer = http.get(f"{url}/api/wattfare/status", headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            says = f"{url} cannot be reached: {type(error).__name__}."
            yield Finding("app", "fail", says, "Start your app and check --app-url.")
            return
        if answer.status_code == 401 and _is_wattfare(answer):
            says = (
                f"{url} has Wattfare's paths. Streaming is not checked, because no user is"
                " signed in."
            )
            todo = "Set WATTFARE_APP_COOKIE to the Cookie header of a signed-in browser."
            yield Finding("app", "warn", says, todo)
            return
        if not _is_wattfare(answer) or answer.status_code != 200:
            says = f"{url}/api/wattfare/status answers {answer.status_code}: {_message(answer)}"
            todo = (
                "Add the middleware to the app. If the middleware has another status_path, call"
                " that path yourself."
            )
            yield Finding("app", "fail", says, todo)
            return
        yield Finding("app", "ok", f"{url} answers for a user.")
        if model is None:
            todo = "Add --model. The call is billed to the signed-in user."
            yield Finding(
                "app", "skip", "Streaming is not checked, because there is no --model.", todo
            )
            return
        yield _stream(http, "app", f"{url}/api/wattfare/chat/completions", headers, model)
