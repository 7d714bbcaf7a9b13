"""However an app uses the current user, only the user of the request is billed."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import queue
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import flask
import httpx
import openai
import pytest
import wattfare_flask
import wattfare_starlette
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket
from support.current_apps import (
    async_model,
    billed,
    flask_app,
    litestar_app,
    model,
    options,
    starlette_app,
    words,
)
from support.drivers import environ_of
from support.fake_wattfare import SECRET_KEY
from support.http_client import fetch, http_client
from support.patience import PATIENCE
from support.servers import (
    Visitor,
    hypercorn_server,
    hypercorn_trio_server,
    uvicorn_server,
    werkzeug_server,
)
from support.service import App, Service, eventually

from wattfare_mw import (
    Request,
    WattfareAuthError,
    WattfareCurrentUserError,
    WattfareMiddleware,
    current_async_user,
    current_user,
)
from wattfare_mw.framework import WattfareAsyncAdapter

USERS = [f"u{number}" for number in range(1, 51)]
NO_SERVICE: dict[str, Any] = {
    "secret_key": SECRET_KEY,
    "base_url": "http://127.0.0.1:1",
    "current_user": True,
}


@pytest.fixture
def app(service: Service) -> Iterator[App]:
    with service.app() as app:
        yield app


@pytest.fixture(scope="module")
def crowd(service: Service) -> Iterator[App]:
    """An app with many connected users."""
    with service.app() as app, ThreadPoolExecutor(4) as pool:
        list(pool.map(app.connect, USERS))
        yield app


def visit(address: Any, path: str, user: str | None) -> httpx.Response:
    headers = {} if user is None else {"x-me": user}
    url = f"http://{address[0]}:{address[1]}{path}"
    return fetch(url, headers=headers)


def who(request: Request) -> str | None:
    return request.headers.get("x-me")


# -- concurrent requests


@pytest.mark.parametrize(
    ("make", "server", "path", "users", "calls"),
    [
        (starlette_app, uvicorn_server, "/stream", 50, 3),
        (starlette_app, uvicorn_server, "/threads-stream", 8, 3),
        (starlette_app, uvicorn_server, "/whole", 8, 1),
        (starlette_app, uvicorn_server, "/sync", 8, 1),
        (starlette_app, uvicorn_server, "/together", 8, 4),
        (starlette_app, hypercorn_server, "/stream", 8, 3),
        (litestar_app, uvicorn_server, "/whole", 4, 1),
        (litestar_app, uvicorn_server, "/sync", 4, 1),
        (litestar_app, uvicorn_server, "/stream", 8, 3),
        (flask_app, werkzeug_server, "/stream", 50, 3),
        (flask_app, werkzeug_server, "/kept-stream", 8, 3),
        (flask_app, werkzeug_server, "/sync", 8, 1),
        (flask_app, werkzeug_server, "/whole", 4, 1),
        (flask_app, werkzeug_server, "/together", 8, 4),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_concurrent_requests_bill_their_own_users(
    crowd: App, make: Any, server: Any, path: str, users: int, calls: int
) -> None:
    before = billed(crowd)
    names = USERS[:users]
    with server(make(crowd)) as address, ThreadPoolExecutor(users) as pool:
        answers = list(pool.map(lambda name: visit(address, path, name), names))
        assert [answer.status_code for answer in answers] == [200] * users
        if path in ("/whole", "/sync"):
            assert visit(address, path, None).status_code == 401
    new = {user: asked[len(before.get(user, [])) :] for user, asked in billed(crowd).items()}
    assert {user: asked for user, asked in new.items() if asked} == {
        name: [int(name[1:])] * calls for name in names
    }


def test_keep_alive_requests_bill_their_own_users(app: App) -> None:
    for user in ("u1", "u2"):
        app.connect(user)
    sites = [(starlette_app, uvicorn_server, "/sync"), (flask_app, werkzeug_server, "/stream")]
    for make, server, path in sites:
        with (
            server(make(app)) as (host, port),
            http_client() as client,
        ):
            for user in ("u1", "u2", "u1"):
                url = f"http://{host}:{port}{path}"
                answer = client.get(url, headers={"x-me": user}, timeout=PATIENCE)
                assert answer.status_code == 200
            refused = client.get(f"http://{host}:{port}/sync", timeout=PATIENCE)
            assert refused.status_code == 401
    assert billed(app) == {"u1": [1] * 8, "u2": [2] * 4}


def test_pipelined_requests_bill_their_own_users(app: App) -> None:
    """The server starts the second request in the context of the first."""
    for user in ("u1", "u2"):
        app.connect(user)
    with uvicorn_server(starlette_app(app)) as address:
        visitor = Visitor(address)
        ask = "GET /whole HTTP/1.1\r\nhost: x\r\n{}\r\n"
        requests = [ask.format(f"x-me: {user}\r\n") for user in ("u1", "u2")]
        anonymous = "GET /whole HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        visitor.send("".join([*requests, anonymous]).encode())
        assert visitor.rest().count(b"HTTP/1.1 200") == 2
    assert billed(app) == {"u1": [1], "u2": [2]}


# -- work that outlives its request


def test_tasks_and_threads_that_outlive_their_request_are_refused(app: App) -> None:
    """Each is refused, whether or not it had resolved its user, and while other requests run."""
    app.connect("u1")
    app.connect("u2")
    ended = threading.Event()
    outcomes: queue.Queue[BaseException | str] = queue.Queue()
    tasks: list[Any] = []

    def outlive_in_thread() -> None:
        assert ended.wait(PATIENCE)
        outcomes.put(outcome(lambda: model.generate("of a thread")))

    async def outlive(done: asyncio.Event) -> None:
        await done.wait()
        try:
            await async_model.generate("of a task")
        except WattfareCurrentUserError as error:
            outcomes.put(error)
        else:
            outcomes.put("billed")

    done = asyncio.Event()

    async def start(request: StarletteRequest) -> PlainTextResponse:
        if "early" in request.url.path:
            assert await current_async_user.status()
        tasks.append(asyncio.create_task(outlive(done)))
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(outlive_in_thread,)).start()
        return PlainTextResponse("started")

    async def release(_request: StarletteRequest) -> PlainTextResponse:
        # The first requests have ended. This one has a user.
        ended.set()
        done.set()
        await asyncio.gather(*tasks)
        answer = await async_model.generate("a b")
        return PlainTextResponse(answer.text)

    site = Starlette(
        routes=[Route("/early", start), Route("/late", start), Route("/release", release)]
    )
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=who_of_starlette))
    with uvicorn_server(site) as address:
        assert visit(address, "/early", "u1").text == "started"
        assert visit(address, "/late", "u1").text == "started"
        assert visit(address, "/release", "u2").text == "a b"
    for _ in range(4):
        error = outcomes.get(timeout=PATIENCE)
        assert isinstance(error, WattfareCurrentUserError), error
        assert "has ended" in error.message
        assert "pass it on" in error.message
    assert billed(app) == {"u2": [2]}


def who_of_starlette(request: Any) -> str | None:
    return request.headers.get("x-me")


def outcome(call: Callable[[], Any]) -> Any:
    """Returns the result of the call, or the error it raises."""
    try:
        return call()
    except Exception as error:
        return error


def test_queue_worker_started_by_a_request_has_no_current_user(app: App) -> None:
    """The worker does the jobs of all users. The first user must not be billed for them."""
    for user in ("u1", "u2", "u3"):
        app.connect(user)
    jobs: Any = None
    worker: Any = None

    async def work() -> None:
        while True:
            text, user, answer = await jobs.get()
            try:
                pays = async_model if user is None else user.model("wattfare/echo")
                answer.set_result((await pays.generate(text)).text)
            except WattfareCurrentUserError as error:
                answer.set_result(error.message)

    async def enqueue(request: StarletteRequest) -> PlainTextResponse:
        nonlocal jobs, worker
        if jobs is None:
            jobs = asyncio.Queue()
            worker = asyncio.create_task(work())
            return PlainTextResponse("started")
        answer = asyncio.get_running_loop().create_future()
        user = await current_async_user.resolve() if "good" in request.url.path else None
        jobs.put_nowait((words(request.headers["x-me"]), user, answer))
        return PlainTextResponse(await answer)

    site = Starlette(routes=[Route("/good", enqueue), Route("/bad", enqueue)])
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=who_of_starlette))
    with uvicorn_server(site) as address:
        assert visit(address, "/bad", "u1").text == "started"
        assert "has ended" in visit(address, "/bad", "u2").text
        assert visit(address, "/good", "u3").text == "w w w"
    assert billed(app) == {"u3": [3]}


def test_background_task_has_no_current_user(app: App) -> None:
    """It runs after the response and may do work for other users."""
    app.connect("u1")
    outcomes: queue.Queue[Any] = queue.Queue()

    def background() -> None:
        outcomes.put(outcome(lambda: model.generate("after it")))

    async def view(request: StarletteRequest) -> Any:
        task = BackgroundTask(background)
        if "stream" in request.url.path:
            return StreamingResponse(iter(["a", "b"]), background=task)
        return PlainTextResponse("a", background=task)

    site = Starlette(routes=[Route("/whole", view), Route("/stream", view)])
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=who_of_starlette))
    with uvicorn_server(site) as address:
        for path in ("/whole", "/stream"):
            assert visit(address, path, "u1").status_code == 200
            assert isinstance(outcomes.get(timeout=PATIENCE), WattfareCurrentUserError)
    assert billed(app) == {}


def test_shared_executor_has_no_current_user(app: App) -> None:
    """Its threads belong to no request. `copy_context` assigns a job to a user."""
    app.connect("u1")
    app.connect("u2")
    pool = ThreadPoolExecutor(1)
    site = flask.Flask(__name__)

    @site.get("/<how>")
    def view(how: str) -> str:
        run = contextvars.copy_context().run if how == "copied" else lambda call: call()
        found = pool.submit(run, lambda: outcome(lambda: model.generate("a b").text)).result()
        return str(found)

    def who(_request: Any) -> str | None:
        return flask.request.headers.get("x-me")

    wattfare_flask.WattfareMiddleware(site, **options(app, resolve_user=who))
    with werkzeug_server(site) as address, pool:
        assert "explicitly" in visit(address, "/plain", "u1").text
        assert visit(address, "/copied", "u1").text == "a b"
        assert "explicitly" in visit(address, "/plain", "u2").text
        assert visit(address, "/copied", "u2").text == "a b"
    assert billed(app) == {"u1": [2], "u2": [2]}


def test_executor_of_the_event_loop_has_no_current_user(app: App) -> None:
    async def view(_request: StarletteRequest) -> PlainTextResponse:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, lambda: outcome(lambda: current_user.id))
        return PlainTextResponse(str(found))

    site = Starlette(routes=[Route("/", view)])
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=who_of_starlette))
    with uvicorn_server(site) as address:
        assert "explicitly" in visit(address, "/", "u1").text


@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_stream_whose_client_disconnects_bills_its_own_user(app: App, interface: str) -> None:
    """Later work of its generator is billed to its own user or refused."""
    app.connect("u1")
    app.connect("u2")
    outcomes: queue.Queue[Any] = queue.Queue()

    def forever() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            outcomes.put(outcome(lambda: model.generate("w").text))

    if interface == "asgi":
        view: Any = lambda _request: StreamingResponse(forever())  # noqa: E731
        quick: Any = lambda request: PlainTextResponse(  # noqa: E731
            model.generate(words(request.headers["x-me"])).text
        )
        site: Any = Starlette(routes=[Route("/forever", view), Route("/quick", quick)])
        wattfare_starlette.add_wattfare(site, **options(app, resolve_user=who_of_starlette))
        server: Any = uvicorn_server
    else:
        site = flask.Flask(__name__)
        site.add_url_rule("/forever", view_func=lambda: flask.Response(forever()), endpoint="f")
        site.add_url_rule(
            "/quick",
            view_func=lambda: model.generate(words(flask.request.headers["x-me"])).text,
            endpoint="q",
        )
        wattfare_flask.WattfareMiddleware(site, **options(app, resolve_user=who_of_starlette))
        server = werkzeug_server
    with server(site) as address:
        visitor = Visitor(address)
        visitor.ask("GET", "/forever", {"x-me": "u1"})
        visitor.wait_for(b"xxxx")
        visitor.leave(reset=True)

        def ended() -> bool:
            # Other users' requests run in the meantime.
            assert visit(address, "/quick", "u2").text == "w w"
            gc.collect()
            return not outcomes.empty()

        eventually(ended)
    assert set(billed(app)) <= {"u1", "u2"}
    assert set(billed(app)["u2"]) == {2}
    assert set(billed(app).get("u1", [])) <= {1}


def test_app_that_raises_clears_its_current_user() -> None:
    seen: list[Any] = []

    def failing(environ: Any, start_response: Any) -> Any:
        seen.append((contextvars.copy_context(), current_user.id))
        raise RuntimeError("a bug")

    wrapped = WattfareMiddleware(failing, resolve_user=who, **NO_SERVICE)
    with pytest.raises(RuntimeError, match="a bug"):
        wrapped(environ_of("GET", "/", {"x-me": "u1"}), lambda *_: None)
    context, user = seen[0]
    assert user == "u1"
    with pytest.raises(WattfareCurrentUserError, match="set current_user=True"):
        current_user.id  # noqa: B018
    with pytest.raises(WattfareCurrentUserError, match="has ended"):
        context.run(lambda: current_user.id)


# -- WSGI bodies, driven by hand


def streaming(environ: Any, start_response: Any) -> Iterator[bytes]:
    """A generator app that yields the current user at each step."""
    start_response("200 OK", [])
    left = contextvars.copy_context()
    environ["left"].append(left)
    try:
        for _ in range(3):
            yield current_user.id.encode()
    finally:
        environ["at the end"].append(outcome(lambda: current_user.id))


wsgi = WattfareMiddleware(streaming, resolve_user=who, interface="wsgi", **NO_SERVICE)


def begin(user: str) -> tuple[Any, Any, dict[str, Any]]:
    environ = environ_of("GET", "/", {"x-me": user})
    environ["left"], environ["at the end"] = [], []
    body: Any = wsgi(environ, lambda *_: None)
    return body, iter(body), environ


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["begin", "next", "next", "close", "drop"]),
            st.integers(0, 4),
            st.integers(0, 2),
        ),
        max_size=30,
    )
)
def test_interleaved_wsgi_streams_in_any_thread_keep_their_own_users(
    steps: list[tuple[str, int, int]],
) -> None:
    """Each step of a stream has its own user. Between steps, the thread has none."""
    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        streams: dict[int, Any] = {}
        for action, number, thread in steps:
            run = threads[thread].submit
            if action == "begin":
                streams[number] = run(begin, f"u{number}").result()
            elif number in streams:
                body, parts, environ = streams[number]
                if action == "next":
                    part = run(next, parts, None).result()
                    assert part in (None, f"u{number}".encode())
                else:
                    if action == "close":
                        run(body.close).result()
                    del body, parts, streams[number]
                    gc.collect(0)
                    assert set(environ["at the end"]) <= {f"u{number}"}
                    for context in environ["left"]:
                        with pytest.raises(WattfareCurrentUserError, match="has ended"):
                            context.run(lambda: current_user.id)
            for each in threads:
                found = each.submit(outcome, lambda: current_user.id).result()
                assert isinstance(found, WattfareCurrentUserError)


def test_stream_that_is_closed_late_has_its_own_user() -> None:
    """The server closes it while it serves another user's request."""
    body, parts, environ = begin("ann")
    assert next(parts) == b"ann"

    def other(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        body.close()
        assert current_user.id == "bob"
        return []

    serve = WattfareMiddleware(other, resolve_user=who, **NO_SERVICE)
    serve(environ_of("GET", "/", {"x-me": "bob"}), lambda *_: None)
    assert environ["at the end"] == ["ann"]


class FileWrapper:
    """A server's own way of sending a file."""


@pytest.mark.parametrize("body", [[b"a"], (b"a",), FileWrapper()], ids=["list", "tuple", "file"])
def test_body_without_code_ends_the_request_at_once(body: Any) -> None:
    left: list[Any] = []

    def plain(_environ: Any, start_response: Any) -> Any:
        left.append(contextvars.copy_context())
        start_response("200 OK", [])
        return body

    environ = environ_of("GET", "/", {"x-me": "ann"}, **{"wsgi.file_wrapper": FileWrapper})
    serve: Any = WattfareMiddleware(plain, resolve_user=who, **NO_SERVICE)
    assert serve(environ, lambda *_: None) is body
    with pytest.raises(WattfareCurrentUserError, match="has ended"):
        left[0].run(lambda: current_user.id)


def test_innermost_middleware_sets_the_current_user(service: Service) -> None:
    """One app inside another, each with its own middleware: each bills its own user."""
    with service.app() as outer, service.app() as inner:
        outer.connect("u1")
        inner.connect("u2")
        seen: list[str] = []

        async def view(_request: StarletteRequest) -> PlainTextResponse:
            return PlainTextResponse((await async_model.generate("a b c")).text)

        async def inside(scope: Any, receive: Any, send: Any) -> None:
            await mounted(scope, receive, send)
            seen.append((await async_model.generate("a")).text)  # the outer user again

        mounted = WattfareMiddleware(
            Starlette(routes=[Route("/in", view)]), **options(inner, resolve_user=lambda _: "u2")
        )
        site = Starlette(routes=[Route("/out", view), Mount("/", inside)])
        whole: Any = WattfareMiddleware(site, **options(outer, resolve_user=lambda _: "u1"))
        with uvicorn_server(whole) as address:
            assert visit(address, "/out", None).text == "a b c"
            visit(address, "/in", None)
        assert billed(inner) == {"u2": [3]}
        # By then, the outer request's response was complete.
        assert billed(outer) == {"u1": [3]}


def test_nested_request_restores_the_outer_user() -> None:
    def inner(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [current_user.id.encode()]

    serve_inner: Any = WattfareMiddleware(inner, resolve_user=who, **NO_SERVICE)

    def outer(_environ: Any, start_response: Any) -> list[bytes]:
        before = current_user.id.encode()
        [between] = serve_inner(environ_of("GET", "/", {"x-me": "bob"}), start_response)
        return [before, between, current_user.id.encode()]

    serve: Any = WattfareMiddleware(outer, resolve_user=who, **NO_SERVICE)
    body = serve(environ_of("GET", "/", {"x-me": "ann"}), lambda *_: None)
    assert body == [b"ann", b"bob", b"ann"]


# -- how the user is resolved


def test_resolve_user_is_called_once_and_only_if_needed(app: App) -> None:
    calls: list[str] = []

    async def slow(request: Any) -> str:
        calls.append(request.url.path)
        await asyncio.sleep(0.05)
        return "u1"

    async def unused(_request: StarletteRequest) -> PlainTextResponse:
        return PlainTextResponse("")

    async def view(_request: StarletteRequest) -> PlainTextResponse:
        given_up = asyncio.create_task(current_async_user.resolve())
        await asyncio.sleep(0)
        given_up.cancel()  # which does not stop it for the other threads
        users = await asyncio.gather(
            *(current_async_user.resolve() for _ in range(5)),
            *(asyncio.to_thread(current_user.resolve) for _ in range(5)),
        )
        assert current_user.id == "u1"  # resolved by now
        return PlainTextResponse(",".join({user.id for user in users}))

    site = Starlette(routes=[Route("/unused", unused), Route("/view", view)])
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=slow))
    with uvicorn_server(site) as address:
        assert visit(address, "/unused", None).status_code == 200
        assert calls == []
        assert visit(address, "/view", None).text == "u1"
        assert calls == ["/view"]
        assert visit(address, "/view", None).text == "u1"
        assert calls == ["/view"] * 2


@pytest.mark.parametrize("is_async", [True, False])
def test_resolve_user_is_called_once_from_many_threads(is_async: bool) -> None:
    calls: list[None] = []
    at_once = threading.Barrier(8)

    def count(request: Request) -> str | None:
        calls.append(None)
        return who(request)

    async def count_async(request: Request) -> str | None:
        await asyncio.sleep(0.01)
        return count(request)

    def view(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])

        def first() -> str:
            at_once.wait(PATIENCE)
            return current_user.id

        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(contextvars.copy_context().run, first) for _ in range(8)]
            return [",".join({job.result() for job in jobs}).encode()]

    resolve = count_async if is_async else count
    serve: Any = WattfareMiddleware(view, resolve_user=resolve, **NO_SERVICE)
    assert serve(environ_of("GET", "/", {"x-me": "ann"}), lambda *_: None) == [b"ann"]
    assert len(calls) == 1


def test_sync_code_on_the_event_loop_with_an_async_resolve_user_is_refused(app: App) -> None:
    """It would deadlock. The error says what to write instead."""

    async def view(_request: StarletteRequest) -> PlainTextResponse:
        with pytest.raises(WattfareCurrentUserError, match="current_async_user"):
            model.generate("a")
        with pytest.raises(WattfareCurrentUserError, match="current_async_user"):
            current_user.id  # noqa: B018
        known = (await current_async_user.resolve()).id
        return PlainTextResponse(f"{known} {current_user.id}")

    async def with_async(request: Any) -> str:
        return request.headers["x-me"]

    for resolve in (with_async, lambda request: with_async(request)):
        site = Starlette(routes=[Route("/", view)])
        wattfare_starlette.add_wattfare(site, **options(app, resolve_user=resolve))
        with uvicorn_server(site) as address:
            assert visit(address, "/", "u1").text == "u1 u1"


def test_sync_code_on_the_event_loop_with_a_sync_resolve_user_works(app: App) -> None:
    async def view(_request: StarletteRequest) -> PlainTextResponse:
        return PlainTextResponse(current_user.id)

    site = Starlette(routes=[Route("/", view)])
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=who_of_starlette))
    with uvicorn_server(site) as address:
        assert visit(address, "/", "u1").text == "u1"


def test_another_event_loop_in_a_thread_of_the_request_works(app: App) -> None:
    app.connect("u1")

    async def there() -> str:
        return (await async_model.generate("a b")).text

    async def resolve(request: Any) -> str:
        assert threading.current_thread() is served_in[0]
        return request.headers["x-me"]

    served_in: list[Any] = []

    async def view(_request: StarletteRequest) -> PlainTextResponse:
        served_in[:] = [threading.current_thread()]
        return PlainTextResponse(await asyncio.to_thread(asyncio.run, there()))

    site = Starlette(routes=[Route("/", view)])
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=resolve))
    with uvicorn_server(site) as address:
        assert visit(address, "/", "u1").text == "a b"
    assert billed(app) == {"u1": [2]}


def test_thread_waiting_for_the_user_fails_when_the_request_ends(app: App) -> None:
    never: Any = None
    outcomes: queue.Queue[Any] = queue.Queue()
    begun = threading.Event()

    async def hang(_request: Any) -> str:
        nonlocal never
        begun.set()
        never = asyncio.Event()
        await never.wait()
        return "u1"

    async def view(_request: StarletteRequest) -> PlainTextResponse:
        context = contextvars.copy_context()
        job = lambda: outcomes.put(outcome(lambda: current_user.id))  # noqa: E731
        threading.Thread(target=context.run, args=(job,)).start()
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        return PlainTextResponse("")

    async def release(_request: StarletteRequest) -> PlainTextResponse:
        never.set()
        return PlainTextResponse("")

    site = Starlette(routes=[Route("/", view), Route("/release", release)])
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=hang))
    with uvicorn_server(site) as address:
        visit(address, "/", "u1")
        assert isinstance(outcomes.get(timeout=PATIENCE), WattfareCurrentUserError)
        visit(address, "/release", "u1")


def test_failed_resolve_user_fails_every_use() -> None:
    """Every use raises the same error. The function is not called again."""
    calls: list[None] = []

    def view(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        for _ in range(2):
            with pytest.raises((WattfareAuthError, ZeroDivisionError)):
                model.generate("a")
        return []

    def no_user(_request: Request) -> None:
        calls.append(None)

    def broken(_request: Request) -> str:
        calls.append(None)
        return str(1 / 0)

    for number, resolve in enumerate([no_user, broken], 1):
        serve: Any = WattfareMiddleware(view, resolve_user=resolve, **NO_SERVICE)
        serve(environ_of("GET", "/", {}), lambda *_: None)
        assert len(calls) == number


def test_resolve_user_that_uses_the_current_user_is_refused() -> None:
    """It would deadlock."""

    def view(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        with pytest.raises(WattfareCurrentUserError):
            current_user.id  # noqa: B018
        return []

    serve: Any = WattfareMiddleware(view, resolve_user=lambda _: current_user.id, **NO_SERVICE)
    serve(environ_of("GET", "/", {}), lambda *_: None)


def test_stopped_thread_leaves_resolve_user_to_other_threads() -> None:
    class Stopped(BaseException):
        pass

    tries: list[None] = []

    def resolve(_request: Request) -> str:
        tries.append(None)
        if len(tries) == 1:
            raise Stopped
        return "ann"

    def view(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        with pytest.raises(Stopped):
            current_user.id  # noqa: B018
        return [current_user.id.encode()]

    serve: Any = WattfareMiddleware(view, resolve_user=resolve, **NO_SERVICE)
    assert serve(environ_of("GET", "/", {}), lambda *_: None) == [b"ann"]


# -- no request, or no option


def test_current_user_outside_of_a_request_is_refused() -> None:
    for call in (
        lambda: current_user.id,
        current_user.status,
        current_user.resolve,
        current_user.disconnect,
        lambda: model.generate("a"),
        lambda: model.stream("a"),
        lambda: async_model.stream("a"),
        lambda: current_user.openai().models.list(),
        lambda: asyncio.run(current_async_user.status()),
        lambda: asyncio.run(current_async_user.disconnect()),
        lambda: asyncio.run(async_model.generate("a")),
    ):
        with pytest.raises(WattfareCurrentUserError, match="explicitly") as caught:
            call()
        assert isinstance(caught.value, RuntimeError)
        assert "current_user=True" in caught.value.message
        assert "current_user" not in str(caught.value.to_wire())


def test_current_user_without_the_option_is_refused() -> None:
    async def view(request: StarletteRequest) -> PlainTextResponse:
        return PlainTextResponse(str(outcome(lambda: current_user.id)))

    site = Starlette(routes=[Route("/", view)])
    wattfare_starlette.add_wattfare(
        site, **{**NO_SERVICE, "current_user": False}, resolve_user=who_of_starlette
    )
    with uvicorn_server(site) as address:
        assert "current_user=True" in visit(address, "/", "u1").text


def test_app_is_not_wrapped_without_the_option() -> None:
    for app, kind in ((streaming, "wsgi"), (Starlette(), "asgi")):
        wrapped: Any = WattfareMiddleware(
            app, interface=kind, resolve_user=who, **{**NO_SERVICE, "current_user": False}
        )
        assert wrapped._app_and_range[0] is app


def test_replaced_inner_app_has_a_current_user() -> None:
    def later(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [current_user.id.encode()]

    wrapped: Any = WattfareMiddleware(streaming, interface="wsgi", resolve_user=who, **NO_SERVICE)
    wrapped.app = later
    assert wrapped(environ_of("GET", "/", {"x-me": "ann"}), lambda *_: None) == [b"ann"]


def test_copies_are_the_same_object_and_reveal_nothing() -> None:
    for user in (current_user, current_async_user):
        assert pickle.loads(pickle.dumps(user)) is user
        assert copy.copy(user) is user
        assert copy.deepcopy(user) is user
        assert repr(user) in ("current_user", "current_async_user")

    def view(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        shown = [current_user, model, contextvars.copy_context().items()]
        assert current_user.id == "ann"
        return [repr([*shown]).encode()]

    serve: Any = WattfareMiddleware(view, resolve_user=who, **NO_SERVICE)
    [shown] = serve(environ_of("GET", "/", {"x-me": "ann"}), lambda *_: None)
    assert SECRET_KEY not in shown.decode()


# -- other ways to use it


def test_stream_belongs_to_the_request_that_created_it() -> None:
    """Another request reads the stream. The stream bills the user who opened it, or fails."""
    streams: list[Any] = []

    def view(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        streams.append(async_model.stream("of ann"))
        return []

    def other(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        with pytest.raises(WattfareCurrentUserError, match="has ended"):
            asyncio.run(anext(streams[0]))
        return []

    for app, user in ((view, "ann"), (other, "bob")):
        serve: Any = WattfareMiddleware(app, resolve_user=who, **NO_SERVICE)
        serve(environ_of("GET", "/", {"x-me": user}), lambda *_: None)


def test_global_openai_clients_bill_the_current_user(app: App) -> None:
    for user in ("u1", "u2"):
        app.connect(user)
    client, async_client = current_user.openai(), current_async_user.async_openai()
    other_client = current_user.async_openai()

    def ask(text: str) -> Any:
        return {"model": "wattfare/echo", "messages": [{"role": "user", "content": text}]}

    def sync_view(request: StarletteRequest) -> PlainTextResponse:
        text = words(request.headers["x-me"])
        answer = client.chat.completions.create(**ask(text))
        return PlainTextResponse(answer.choices[0].message.content)

    async def view(request: StarletteRequest) -> PlainTextResponse:
        text = words(request.headers["x-me"])
        await other_client.chat.completions.create(**ask(text))
        stream = await async_client.chat.completions.create(**ask(text), stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        return PlainTextResponse("".join(parts))

    site = Starlette(routes=[Route("/sync", sync_view), Route("/async", view)])

    async def resolve(request: Any) -> str | None:
        return request.headers.get("x-me")

    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=resolve))
    with uvicorn_server(site) as address, ThreadPoolExecutor(4) as pool:
        visits = [(path, user) for path in ("/sync", "/async") for user in ("u1", "u2")]
        texts = pool.map(lambda each: visit(address, *each).text, visits)
        assert list(texts) == ["w", "w w"] * 2
    assert billed(app) == {"u1": [1] * 3, "u2": [2] * 3}
    with pytest.raises(WattfareCurrentUserError):
        client.chat.completions.create(**ask("a"))
    assert isinstance(client, openai.OpenAI)


def test_websocket_bills_the_current_user(app: App) -> None:
    for user in ("u1", "u2"):
        app.connect(user)
    left: list[Any] = []

    async def view(socket: WebSocket) -> None:
        await socket.accept()
        left.append(contextvars.copy_context())
        async for text in socket.iter_text():
            await socket.send_text((await async_model.generate(text)).text)

    site = Starlette(routes=[WebSocketRoute("/", view)])
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=who_of_starlette))
    with (
        TestClient(site) as client,
        client.websocket_connect("/", headers={"x-me": "u1"}) as one,
        client.websocket_connect("/", headers={"x-me": "u2"}) as two,
    ):
        for socket, text in ((one, "a"), (two, "a b"), (one, "c")):
            socket.send_text(text)
            assert socket.receive_text() == text
    assert billed(app) == {"u1": [1, 1], "u2": [2]}
    for context in left:
        with pytest.raises(WattfareCurrentUserError, match="has ended"):
            context.run(lambda: current_user.id)


def test_threads_under_trio_have_the_current_user() -> None:
    import trio

    async def view(scope: Any, _receive: Any, send: Any) -> None:
        users = [None, None]

        async def ask(number: int) -> None:
            users[number] = await trio.to_thread.run_sync(lambda: current_user.id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 0)
            nursery.start_soon(ask, 1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": repr(users).encode()})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await view(scope, receive, send)
        else:
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return

    site: Any = WattfareMiddleware(app, resolve_user=who, **NO_SERVICE)
    with hypercorn_trio_server(site) as address, ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda user: visit(address, "/", user).text, USERS[:4])
        assert list(found) == [repr([user, user]) for user in USERS[:4]]


@given(seed=st.integers(0, 2**32), users=st.integers(2, 5))
def test_random_interleavings_keep_users_apart(seed: int, users: int) -> None:
    """Requests in one event loop, with tasks, threads and steps in random order."""
    dice = random.Random(seed)
    kept: list[Any] = []

    async def view(scope: Any, _receive: Any, send: Any) -> None:
        me = scope["user"]

        async def step(depth: int) -> None:
            for _ in range(dice.randint(0, 3)):
                await asyncio.sleep(0)
            if dice.random() < 0.3:
                assert (await current_async_user.resolve()).id == me
            if depth and dice.random() < 0.7:
                await asyncio.gather(*(step(depth - 1) for _ in range(2)))
            if dice.random() < 0.3:
                kept.append(asyncio.create_task(late()))
            assert (await current_async_user.resolve()).id == me

        async def late() -> None:
            await done.wait()
            with pytest.raises(WattfareCurrentUserError):
                await current_async_user.resolve()

        await step(3)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def resolve(request: Request) -> str:
        await asyncio.sleep(0)
        return request.raw["user"]

    async def send(_message: Any) -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        nonlocal done
        done = asyncio.Event()
        scopes = [
            {"type": "http", "path": "/", "root_path": "", "headers": [], "user": f"u{number}"}
            for number in range(users)
        ]
        await asyncio.gather(*(site(scope, None, send) for scope in scopes))
        done.set()
        await asyncio.gather(*kept)

    done: Any = None
    site: Any = WattfareMiddleware(view, resolve_user=resolve, interface="asgi", **NO_SERVICE)
    asyncio.run(main())


# -- an adapter that cannot wrap the app


async def test_async_adapter_contract_sets_the_current_user() -> None:
    """An adapter for aiohttp.web does the same, over its own requests."""
    adapter = WattfareAsyncAdapter(resolve_user=who, **NO_SERVICE)
    made: list[str] = []
    left: list[contextvars.Context] = []

    async def handle(user: str) -> list[str]:
        def request() -> Request:
            made.append(user)
            return Request("GET", "/", {"x-me": user})

        current = adapter.current_request(request)
        with current.active():
            left.append(contextvars.copy_context())
            body = view()
        with pytest.raises(WattfareCurrentUserError):
            current_user.id  # noqa: B018
        return [part async for part in current.iterate_async(body)]

    async def view() -> AsyncIterator[str]:
        for _ in range(3):
            await asyncio.sleep(0)
            yield (await current_async_user.resolve()).id

    assert await asyncio.gather(*map(handle, USERS[:3])) == [[user] * 3 for user in USERS[:3]]
    assert sorted(made) == USERS[:3]
    for context in left:
        with pytest.raises(WattfareCurrentUserError, match="has ended"):
            context.run(lambda: current_user.id)


async def test_async_body_that_is_closed_early_ends_the_request() -> None:
    adapter = WattfareAsyncAdapter(resolve_user=who, **NO_SERVICE)
    seen: list[str] = []

    async def view() -> AsyncIterator[str]:
        try:
            yield (await current_async_user.resolve()).id
            yield "more"
        finally:
            seen.append((await current_async_user.resolve()).id)

    current = adapter.current_request(Request("GET", "/", {"x-me": "ann"}))
    body = current.iterate_async(view())
    assert await anext(body) == "ann"
    await body.aclose()
    assert seen == ["ann"]
    assert current.has_ended


async def test_failed_response_ends_the_request() -> None:
    adapter = WattfareAsyncAdapter(resolve_user=who, **NO_SERVICE)
    current = adapter.current_request(Request("GET", "/", {"x-me": "ann"}))
    with current.active():
        assert current_user.id == "ann"
        current.end()
        current.end()
        with pytest.raises(WattfareCurrentUserError, match="has ended"):
            current_user.id  # noqa: B018
