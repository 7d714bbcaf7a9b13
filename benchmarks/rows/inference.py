"""The middleware's inference and token paths, compared with bare pass-throughs with the same
client."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from contextlib import ExitStack

from ..harness import load
from ..harness.bench import Bench, Subject, rates, ratio, versus
from ..harness.load import BARE, DIRECT, OURS, SIGNED_IN, Load, Sample
from ..harness.processes import asgi, upstream, wsgi
from ..upstream import answers

#: Each process of httpx ends up with a different number of connections in its pool, and the cost of
#: the pool grows with the square of this number. So several pairs of processes are measured.
_PROCESSES = 3
#: The middleware with a client that the app provides. It has the settings of the bare
#: pass-through's client.
_INJECTED = "ours, the app's client"


def _loads(kind: str) -> Callable[..., Load]:
    return load.streams if kind == "streams" else load.completions


def over(client: str, kind: str, at_least: float) -> Callable[[Bench], None]:
    """The row for this client and ``kind``: ``json`` or ``streams``."""

    def run(bench: Bench) -> None:
        unit = "streams/s" if kind == "streams" else "requests/s"
        title = f"{kind} over {client}"
        if client == "aiohttp" or bench.quick:
            samples = _side_by_side(bench, title, client, kind)
        else:
            samples = {}
            bench.rounds = math.ceil(bench.rounds / _PROCESSES)
            for number in range(1, _PROCESSES + 1):
                taken = _side_by_side(bench, f"{title}, run {number}", client, kind)
                for name, more in taken.items():
                    samples.setdefault(name, []).extend(more)
            bench.rounds *= _PROCESSES
        path, against = f"inference, {kind}, {client}", f"bare {client} pass-through"
        for name, what in (("ours", path), (_INJECTED, f"{path}, the app's own client")):
            if name in samples:
                value = ratio(rates(samples[name]), rates(samples["bare"]))
                detail = versus(samples, name, "bare", unit)
                bench.judge(what, "throughput", against, value, at_least=at_least, detail=detail)
        if kind == "json" and client == "aiohttp":
            for measure in ("p50_ms", "p99_ms"):
                a, b = ([getattr(s, measure) for s in samples[n]] for n in ("ours", "bare"))
                detail = f"{statistics.median(a):.2f} against {statistics.median(b):.2f} ms"
                name = "median" if measure == "p50_ms" else "p99"
                bench.judge(path, name, against, ratio(a, b), at_most=1.15, detail=detail)

    return run


def _side_by_side(bench: Bench, title: str, client: str, kind: str) -> dict[str, list[Sample]]:
    make = _loads(kind)
    with ExitStack() as stack:
        up = stack.enter_context(upstream())
        bare = stack.enter_context(asgi("bare", f"peers.asgi:over_{client}", up.url))
        ours = stack.enter_context(asgi("ours", f"apps.asgi:over_{client}", up.url))
        subjects = [
            Subject("bare", bare, make(BARE), (up,)),
            Subject("ours", ours, signed_in(make(OURS)), (up,)),
        ]
        if client == "aiohttp":
            subjects.append(Subject("upstream directly", up, make(DIRECT)))
        else:
            injected = stack.enter_context(
                asgi(_INJECTED, f"apps.asgi:over_injected_{client}", up.url)
            )
            subjects.append(Subject(_INJECTED, injected, signed_in(make(OURS)), (up,)))
        return bench.load(title, subjects)


def signed_in(what: Load) -> Load:
    """The same load with a user's cookie."""
    return Load(
        what.path, what.body, SIGNED_IN, what.expect, what.method, what.connections, what.users
    )


def sync_resolver(bench: Bench) -> None:
    """A sync ``resolve_user``, which runs in a thread, compared with an async one."""
    names = {"async": "apps.asgi:over_aiohttp", "sync": "apps.asgi:over_aiohttp_sync_user"}
    with ExitStack() as stack:
        up = stack.enter_context(upstream())
        subjects = [
            Subject(
                name,
                stack.enter_context(asgi(name, app, up.url)),
                signed_in(load.completions(OURS)),
                (up,),
            )
            for name, app in names.items()
        ]
        samples = bench.load("sync resolver", subjects)
    value = ratio(rates(samples["sync"]), rates(samples["async"]))
    detail = versus(samples, "sync", "async", "requests/s")
    against = "an async resolve_user"
    bench.judge("sync resolver", "throughput", against, value, at_least=0.85, detail=detail)


def token(bench: Bench) -> None:
    """The token path, compared with a bare pass-through of ``POST /sessions``."""
    asked = Load("/sessions", b'{"appUserId":"user_1"}', load.AUTHORIZED, answers.SESSION_BODY)
    with (
        upstream() as up,
        asgi("bare", "peers.asgi:over_aiohttp", up.url) as bare,
        asgi("ours", "apps.asgi:over_aiohttp", up.url) as ours,
    ):
        subjects = [
            Subject("bare", bare, asked, (up,)),
            Subject("ours", ours, Load("/api/wattfare-token", b"", SIGNED_IN), (up,)),
        ]
        samples = bench.load("token", subjects)
    value = ratio(rates(samples["ours"]), rates(samples["bare"]))
    detail = versus(samples, "ours", "bare", "requests/s")
    against = "bare pass-through of POST /sessions"
    bench.judge("token path", "throughput", against, value, at_least=0.85, detail=detail)


def over_wsgi(kind: str) -> Callable[[Bench], None]:
    """The row for WSGI on gunicorn, and this ``kind``: ``json`` or ``streams``."""

    def run(bench: Bench) -> None:
        make = _loads(kind)
        with (
            upstream() as up,
            wsgi("bare", "peers.wsgi:over_httpx", up.url) as bare,
            wsgi("ours", "apps.wsgi:over_httpx", up.url) as ours,
        ):
            subjects = [
                Subject("bare", bare, make(BARE), (up,)),
                Subject("ours", ours, signed_in(make(OURS)), (up,)),
            ]
            samples = bench.load(f"WSGI, {kind}", subjects)
        value = ratio(rates(samples["ours"]), rates(samples["bare"]))
        detail = versus(samples, "ours", "bare", "streams/s" if kind == "streams" else "requests/s")
        path = f"WSGI inference, {kind}, gunicorn gthread"
        against = "bare pass-through on httpx"
        bench.judge(path, "throughput", against, value, at_least=0.9, detail=detail)

    return run
