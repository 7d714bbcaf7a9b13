"""The clients that ``user.openai()`` and ``user.async_openai()`` return."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from importlib import import_module, reload
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from support.refusals import KEY, TOKEN, payer_of, refuses
from support.service import App, eventually
from support.upstream import Exchange, Upstream, completion_of

from wattfare_mw import (
    AsyncWattfare,
    Timeout,
    Wattfare,
    WattfareAuthError,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareNetworkError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
    to_wattfare_error,
)
from wattfare_mw.calls import Payer
from wattfare_mw.client import runner_of
from wattfare_mw.transport import environment

ASK: dict[str, Any] = {
    "model": "wattfare/echo",
    "messages": [{"role": "user", "content": "Hello."}],
}
KINDS = ["openai", "async_openai"]


def ask(handle: Any, kind: str, **fields: Any) -> Any:
    """Makes a call with a handle's client, or with the given client."""
    client = getattr(handle, kind)() if hasattr(handle, kind) else handle
    if kind == "openai":
        return client.chat.completions.create(**{**ASK, **fields})

    async def run() -> Any:
        return await client.chat.completions.create(**{**ASK, **fields})

    return asyncio.run(run())


def read(handle: Any, kind: str) -> list[str]:
    """The words of a stream."""
    client = getattr(handle, kind)()
    if kind == "openai":
        return [_word(chunk) for chunk in client.chat.completions.create(**ASK, stream=True)]

    async def run() -> list[str]:
        stream = await client.chat.completions.create(**ASK, stream=True)
        return [_word(chunk) async for chunk in stream]

    return asyncio.run(run())


def _word(chunk: Any) -> str:
    return chunk.choices[0].delta.content or ""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client would have waited."""
    waited: list[float] = []
    own_thread, really_sleep = threading.get_ident(), time.sleep

    def sleep_sync(seconds: float) -> None:
        if threading.get_ident() == own_thread:
            waited.append(seconds)
        else:  # a thread of the fake service or of an earlier test
            really_sleep(seconds)

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("time.sleep", sleep_sync)
    monkeypatch.setattr("anyio.sleep", sleep)
    return waited


@pytest.mark.parametrize("kind", KINDS)
def test_call_is_billed_to_its_user(wf: Wattfare, app: App, kind: str) -> None:
    answer = ask(wf.user("ann"), kind)
    assert answer.choices[0].message.content == "Hello."
    assert Decimal(str(answer.usage.cost)) == wf.user("ann").status().usage.monthly_usd > 0
    assert "".join(read(wf.user("bob"), kind)) == "Hello."
    assert wf.user("bob").status().usage.monthly_usd > 0


@pytest.mark.parametrize("kind", KINDS)
def test_each_handle_has_clients(fake: Upstream, client: Callable[..., Any], kind: str) -> None:
    for made in (client(), client(AsyncWattfare)):
        for handle in (made.user("ann"), made.grant(TOKEN)):
            ask(handle, kind)
    assert [payer_of(call) for call in fake.calls] == [("ann", None), (None, TOKEN)] * 2
    assert {call.headers["authorization"] for call in fake.calls} == {f"Bearer {KEY}"}
    assert {call.path for call in fake.calls} == {"/api/v1/chat/completions"}


def test_client_is_an_openai_client(users: Wattfare) -> None:
    import openai

    user = users.user("ann")
    assert isinstance(user.openai(), openai.OpenAI)
    assert isinstance(user.async_openai(), openai.AsyncOpenAI)
    assert user.openai().api_key == KEY
    assert str(user.openai().base_url) == f"{users.base_url}/api/v1/"
    assert repr(user.openai()) == "WattfareOpenAI('ann')"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "user", ["Zoë", "日本", "a\nb\r\nx-wattfare-user: bob", "100%", "%41", " a "]
)
def test_any_user_id_is_sent(fake: Upstream, users: Wattfare, user: str, kind: str) -> None:
    ask(users.user(user), kind)
    value = fake.calls[0].headers["x-wattfare-user"]
    assert value.isascii()
    assert unquote(value) == user


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "status", [302, 400, 401, 402, 403, 404, 408, 409, 413, 422, 500, 502, 503, 504]
)
def test_only_a_429_is_retried(
    fake: Upstream, users: Wattfare, waits: list[float], status: int, kind: str
) -> None:
    fake.script = refuses(status, "", location="/elsewhere", x_should_retry="true")
    with pytest.raises(WattfareError):
        ask(users.user("ann"), kind)
    assert (len(fake.calls), waits) == (1, [])


@pytest.mark.parametrize("kind", KINDS)
def test_retry_of_a_429_waits_for_retry_after(
    fake: Upstream, users: Wattfare, waits: list[float], kind: str
) -> None:
    busy = refuses(429, "rate_limited", retry_after="17")

    def script(exchange: Exchange) -> None:
        busy(exchange) if len(fake.calls) < 3 else exchange.answer(completion_of("Hi."))

    fake.script = script
    assert ask(users.user("ann"), kind).choices[0].message.content == "Hi."
    assert waits == [17, 17]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "31"}, 31),
        ({"retry_after": "100000"}, 86400),
        ({"retry_after_ms": "31000"}, 31),
        ({"retry_after_ms": "120000", "retry_after": "1"}, 120),
    ],
)
def test_long_wait_raises_at_once(
    fake: Upstream,
    users: Wattfare,
    waits: list[float],
    headers: dict[str, str],
    seconds: float,
    kind: str,
) -> None:
    fake.script = refuses(429, "rate_limited", **headers)
    with pytest.raises(WattfareRateLimitError) as caught:
        ask(users.user("ann"), kind)
    assert (len(fake.calls), waits, caught.value.retry_after) == (1, [], seconds)


@pytest.mark.parametrize("kind", KINDS)
def test_call_that_may_have_arrived_is_not_retried(
    fake: Upstream, users: Wattfare, waits: list[float], kind: str
) -> None:
    import openai

    fake.script = Exchange.reset
    with pytest.raises(WattfareNetworkError) as caught:
        ask(users.user("ann"), kind)
    assert isinstance(caught.value, openai.APIConnectionError)
    assert (len(fake.calls), waits, caught.value.sent) == (1, [], True)


@pytest.mark.parametrize("kind", KINDS)
def test_timeout_is_not_retried(
    fake: Upstream, client: Callable[..., Any], waits: list[float], kind: str
) -> None:
    import openai

    fake.script = Exchange.hang
    users = client(timeout=Timeout(inference=0.05))
    with pytest.raises(openai.APITimeoutError) as caught:
        ask(users.user("ann"), kind)
    assert isinstance(caught.value, WattfareNetworkError)
    assert (waits, caught.value.sent) == ([], True)
    eventually(lambda: fake.calls)  # the fake may read it after the client has given up
    assert len(fake.calls) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_refused_connection_is_retried(waits: list[float], kind: str) -> None:
    with (
        Wattfare(KEY, base_url="http://127.0.0.1:9") as users,
        pytest.raises(WattfareNetworkError, match="Check WATTFARE_BASE_URL") as caught,
    ):
        ask(users.user("ann"), kind)
    assert (len(waits), caught.value.sent) == (2, False)


@pytest.mark.parametrize("kind", KINDS)
def test_error_belongs_to_both_packages(wf: Wattfare, kind: str) -> None:
    import openai

    with pytest.raises(WattfareBudgetExceededError) as caught:
        ask(wf.user("max"), kind)
    error: Any = caught.value
    assert isinstance(error, openai.APIStatusError)
    assert to_wattfare_error(error) is error
    assert (error.code, error.status, error.status_code) == ("budget_exceeded", 402, 402)
    assert (error.limited_by, error.remaining_usd) == ("cap", 0)
    assert error.needed_usd > 0
    assert error.resets_at is not None
    assert error.request_id == error.response.headers["x-request-id"]
    assert error.body["code"] == "budget_exceeded"

    with pytest.raises(openai.APIStatusError) as caught:
        ask(wf.user("eve"), kind)
    assert isinstance(caught.value, WattfareNotConnectedError)


def test_pickled_error_leaves_out_openai_objects(wf: Wattfare) -> None:
    with pytest.raises(WattfareBudgetExceededError) as caught:
        ask(wf.user("max"), "openai")
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert type(again) is WattfareBudgetExceededError
        assert (again.message, again.shortfall) == (caught.value.message, caught.value.shortfall)
        assert again.request_id == caught.value.request_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["says", "breaks", "ends"])
def test_broken_stream_raises(fake: Upstream, users: Wattfare, how: str, kind: str) -> None:
    import openai

    def script(exchange: Exchange) -> None:
        exchange.start_stream(headers={"x-request-id": "r7"})
        exchange.word('an {"error": 1} ')
        if how == "says":
            exchange.event({"error": {"code": "not_connected", "message": "Gone."}})
        elif how == "ends":
            exchange.send(b"0\r\n\r\n")
        else:
            exchange.reset()

    fake.script = script
    with pytest.raises(openai.APIError) as caught:
        read(users.user("ann"), kind)
    error = to_wattfare_error(caught.value)
    assert error is caught.value
    assert (error.code, error.request_id) == (
        "not_connected" if how == "says" else "upstream",
        "r7",
    )


class LaterPayer:
    """A payer who is unknown until ``now`` is set."""

    now: Payer | None = None
    client: Any = None

    def pays(self) -> Payer:
        if self.now is None:
            raise WattfareError("There is no request.")
        return self.now

    async def pays_async(self) -> Payer:
        return self.pays()


def later_user(users: Wattfare) -> Any:
    later: Any = users.user("nobody")
    payer: Any = LaterPayer()
    payer.client = runner_of(users)
    later._paid_by = payer
    return later


@pytest.mark.parametrize("kind", KINDS)
def test_each_call_resolves_its_payer(fake: Upstream, users: Wattfare, kind: str) -> None:
    later = later_user(users)
    made = getattr(later, kind)()
    with pytest.raises(WattfareError, match="There is no request"):
        ask(made, kind)
    for name in ("ann", "bob"):
        later._paid_by.now = Payer("x-wattfare-user", name)
        ask(made, kind)
        ask(made.with_options(max_retries=0), kind)
    assert [payer_of(call)[0] for call in fake.calls] == ["ann", "ann", "bob", "bob"]


@pytest.mark.parametrize("kind", KINDS)
def test_client_can_be_created_before_its_service_is_known(
    fake: Upstream, users: Wattfare, kind: str
) -> None:
    class Everything(LaterPayer):
        @property
        def client(self) -> Any:
            if self.now is None:
                raise WattfareError("There is no request.")
            return runner_of(users)

    later = later_user(users)
    later._paid_by = payer = Everything()
    made = getattr(later, kind)(timeout=5).with_options(max_retries=0)
    with pytest.raises(WattfareError, match="There is no request"):
        ask(made, kind)
    payer.now = Payer("x-wattfare-user", "ann")
    ask(made, kind)
    assert payer_of(fake.calls[0])[0] == "ann"


@pytest.mark.parametrize("kind", KINDS)
def test_call_cannot_name_another_payer(fake: Upstream, users: Wattfare, kind: str) -> None:
    headers = {"X-Wattfare-User": "bob", "X-Wattfare-Grant": TOKEN, "Authorization": "Bearer x"}
    ask(users.user("ann").openai(default_headers=headers), "openai")
    ask(users.user("ann"), kind, extra_headers=headers)
    for call in fake.calls:
        assert payer_of(call) == ("ann", None)
        assert call.headers["authorization"] == f"Bearer {KEY}"


def test_users_share_connections(fake: Upstream, users: Wattfare) -> None:
    for name in ("ann", "bob", "ann"):
        ask(users.user(name), "openai")
    ask(users.user("ann").openai().with_options(timeout=3), "openai")

    async def both() -> None:
        for name in ("ann", "bob"):
            made = users.user(name).async_openai(max_retries=0)
            await made.chat.completions.create(**ASK)

    asyncio.run(both())
    used = [id(call.connection) for call in fake.calls]
    assert len({*used[:4]}) == len({*used[4:]}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_closing_one_client_closes_no_other(fake: Upstream, users: Wattfare, kind: str) -> None:
    ann, bob = users.user("ann").openai(), users.user("bob").openai()
    with ann:
        ask(ann, "openai")
    ask(bob, "openai")
    ask(ann, "openai")

    async def run() -> None:
        async with users.user("ann").async_openai() as made:
            await made.chat.completions.create(**ASK)
        await users.user("bob").async_openai().chat.completions.create(**ASK)

    asyncio.run(run())
    assert len({id(call.connection) for call in fake.calls[:3]}) == 1
    assert len({id(call.connection) for call in fake.calls[3:]}) == 1


def test_connections_close_with_the_wattfare_client(
    fake: Upstream, client: Callable[..., Any]
) -> None:
    users = client()
    ann = users.user("ann").openai()
    ask(ann, "openai")
    users.close()
    ask(ann, "openai")  # it can be used again, as the client itself can
    assert len({id(call.connection) for call in fake.calls}) == 2

    async def run() -> Any:
        async with client(AsyncWattfare) as others:
            await others.user("ann").async_openai().chat.completions.create(**ASK)
            await asyncio.to_thread(ask, others.user("ann"), "openai")
            return others._runner.openai

    gone = asyncio.run(run())
    assert (gone.shared_async._clients, [slot.client for slot in gone.shared._slots.values()]) == (
        {},
        [None],
    )


def test_one_client_works_in_several_event_loops(fake: Upstream, users: Wattfare) -> None:
    made = users.user("ann").async_openai()
    for _ in range(3):
        ask(made, "async_openai")
    gc.collect()  # an open connection would cause a warning, which is an error here
    assert len({id(call.connection) for call in fake.calls}) == 3


def test_threads_bill_their_own_users(fake: Upstream, users: Wattfare) -> None:
    def script(exchange: Exchange) -> None:
        exchange.answer(completion_of(str(payer_of(exchange)[0])))

    fake.script = script
    answers: list[tuple[str, str]] = []

    def work(name: str) -> None:
        made = users.user(name).openai()
        answers.extend((name, ask(made, "openai").choices[0].message.content) for _ in range(10))

    threads = [threading.Thread(target=work, args=(f"user-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 60
    assert all(name == billed for name, billed in answers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_worker_has_its_own_connections(fake: Upstream, users: Wattfare) -> None:
    made = users.user("ann").openai()
    ask(made, "openai")
    child = os.fork()
    if not child:
        try:
            ask(made, "openai")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    ask(made, "openai")
    used = [id(call.connection) for call in fake.calls]
    assert len(used) == 3
    assert used[0] == used[2] != used[1]


@pytest.mark.parametrize("kind", KINDS)
def test_reprs_hide_secrets(
    fake: Upstream,
    client: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    users = client(max_retries=0)
    grant = users.grant(TOKEN)
    made = getattr(grant, kind)()
    shown = [repr(made), repr(vars(made)), repr(made.copy()), repr(grant)]
    # A WebSocket is opened with these.
    shown += [repr(made.auth_headers), repr(made.default_headers)]
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(made)
    assert copy.copy(made) is made
    ask(made, kind)

    def echoes(exchange: Exchange) -> None:
        error = {"code": "auth", "message": f"{exchange.headers['authorization']} is wrong."}
        exchange.answer({"error": error}, status=401)

    for script in (echoes, refuses(402, "grant_invalid"), Exchange.reset):
        fake.script = script
        with pytest.raises(WattfareError) as caught:
            ask(made, kind)
        error: Any = caught.value
        error.__traceback__ = error.__traceback__.tb_next  # without this test's service
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown += [*trace.format(), str(error), repr(error), repr(error.body), error.message]
        shown += [repr(error.request.headers), str(error.to_wire()), repr(vars(error))]
    assert isinstance(to_wattfare_error(caught.value), WattfareNetworkError)
    for text in (*shown, caplog.text):
        assert "dontyoutellanyone" not in text
    assert caplog.text


def test_refused_key_is_not_repeated(fake: Upstream, users: Wattfare) -> None:
    def script(exchange: Exchange) -> None:
        exchange.answer({"error": {"code": "auth", "message": f"{KEY}?"}}, status=401)

    fake.script = script
    with pytest.raises(WattfareAuthError) as caught:
        ask(users.user("ann"), "openai")
    assert caught.value.message == "…?"


def test_openai_settings_are_not_sent_to_the_service(
    fake: Upstream, users: Wattfare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-openai\nX-Mine: x-mine")
    for kind in KINDS:
        ask(getattr(users.user("ann"), kind)().with_options(timeout=5), kind)
    for call in fake.calls:
        assert {"sk-openai", "sk-admin", "org-1", "project-1", "x-mine"}.isdisjoint(
            call.headers.values()
        )
        assert call.headers["authorization"] == f"Bearer {KEY}"


def test_cookies_are_not_kept(fake: Upstream, users: Wattfare) -> None:
    def script(exchange: Exchange) -> None:
        exchange.answer(completion_of("Hi."), headers={"set-cookie": "a=1; path=/"})

    fake.script = script
    for name in ("ann", "bob"):
        for kind in KINDS:
            ask(users.user(name), kind)
    assert not any("cookie" in call.headers for call in fake.calls)


def test_client_options(users: Wattfare) -> None:
    made: Any = users.user("ann").openai(timeout=3, max_retries=7, default_headers={"x-mine": "1"})
    assert (made.timeout, made.max_retries, made.default_headers["x-mine"]) == (3, 7, "1")
    made = users.user("ann").async_openai()
    assert (made.timeout.read, made.timeout.connect, made.max_retries) == (600, 5, 2)
    for wrong in ({"api_key": "x"}, {"base_url": "http://x"}, {"organisation": "x"}):
        with pytest.raises(TypeError, match="cannot be set"):
            users.user("ann").openai(**wrong)
        with pytest.raises(TypeError, match="cannot be set"):
            users.user("ann").async_openai().with_options(**wrong)


def test_http_client_of_the_app_is_used(fake: Upstream, users: Wattfare) -> None:
    import openai

    with openai.DefaultHttpxClient() as own:
        made = users.user("ann").openai(http_client=own)
        ask(made, "openai")
        ask(made.with_options(max_retries=0), "openai")
        made.close()
        assert not own.is_closed
    assert len({id(call.connection) for call in fake.calls}) == 1


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the openai clients, ready to be loaded again."""
    loaded = import_module("wattfare_mw.integrations.openai")
    yield loaded
    monkeypatch.undo()
    reload(loaded)


def test_missing_library_error_says_what_to_install(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"Type: pip install 'wattfare-mw\[openai\]'"):
        reload(module)


def test_outdated_library_error_says_what_to_install(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = SimpleNamespace(OpenAI=object, __version__="1.9.0")
    monkeypatch.setitem(sys.modules, "openai", old)
    with pytest.raises(ImportError, match=r"too old\. Type: pip install 'wattfare-mw\[openai\]'"):
        reload(module)


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("pydantic_ai", "pydantic_ai", "pydantic-ai"),
        ("langchain", "langchain_core", "langchain"),
        ("agents", "agents", "agents"),
    ],
)
def test_each_module_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str, extra: str
) -> None:
    for loaded in [each for each in sys.modules if each.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"wattfare_mw.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"Type: pip install 'wattfare-mw\[{extra}\]'"):
        import_module(f"wattfare_mw.integrations.{name}")


@pytest.mark.parametrize("kind", KINDS)
def test_unencodable_request_hides_secrets(users: Wattfare, kind: str) -> None:
    """At this point, the key has not been added."""
    for wrong in ({"user": object()}, {"extra_headers": {"x-name": "Zoë"}}):
        with pytest.raises((UnicodeEncodeError, TypeError)) as caught:
            ask(users.user("ann"), kind, **wrong)
        assert KEY not in str(_locals(caught.value))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proxy", ["http://me:pass-word@:::x", "socks9://me:pass-word@127.0.0.1:9"])
def test_unusable_proxy_raises(
    users: Wattfare, proxy: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = getattr(users.user("ann"), kind)()
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(WattfareError, match="HTTP_PROXY") as caught:
        ask(made if kind == "openai" else users.user("ann"), kind)
    shown = [*traceback.format_exception(caught.value), str(_locals(caught.value))]
    assert "pass-word" not in "".join(shown).replace(repr(proxy), "")
    assert KEY not in "".join(shown)


@pytest.mark.parametrize("kind", KINDS)
def test_error_names_stale_certificates(
    users: Wattfare, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.ssl_context.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent/cacert.pem")
    with pytest.raises(WattfareError, match=r"SSL_CERT_FILE='/nonexistent/cacert\.pem'"):
        ask(users.user("ann"), kind)


def _locals(error: BaseException | None) -> list[str]:
    """The local variables of an error's frames, except those of the tests."""
    found: list[str] = []
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if "tests" not in frame.f_code.co_filename:
                for value in frame.f_locals.values():
                    with suppress(AttributeError):  # it was not finished
                        found.append(repr(value))
        error = error.__cause__ or error.__context__
    return found
