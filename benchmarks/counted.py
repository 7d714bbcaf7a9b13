"""``python -m benchmarks.counted WHAT TIMES BARE``: runs a case TIMES times, and then its baseline
BARE times. :mod:`.harness.counts` runs this under callgrind, which counts the instructions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from wattfare_mw import calls
from wattfare_mw.flow import run
from wattfare_mw.headers import Headers
from wattfare_mw.middleware.asgi import request_from_scope
from wattfare_mw.middleware.gate import ReadBody
from wattfare_mw.middleware.relay import Record, Relay
from wattfare_mw.users import CallFunction

from .apps import asgi, wsgi
from .apps.users import COOKIE
from .harness.direct import asgi_call, ours_around, wsgi_call
from .harness.load import OURS, chat
from .upstream import answers


class _Answer:
    """The service's answer, which is available at once."""

    status = 200

    def __init__(self, content_type: str) -> None:
        self.headers = Headers([("content-type", content_type)])


def _gate(*, stream: bool) -> Callable[[], None]:
    """The gate, for one fixed inference request. The result of each command is available at
    once."""
    gate = ours_around(asgi.hello)._gate
    body = chat(stream=stream)
    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cookie", COOKIE.encode()),
        (b"x-request-id", b"fixed"),
    ]
    scope = {"type": "http", "method": "POST", "path": OURS, "headers": headers}
    answer = _Answer("text/event-stream" if stream else "application/json")
    events = [answers.STREAM_BODY[i : i + 200] for i in range(0, len(answers.STREAM_BODY), 200)]

    def perform(command: Any) -> Any:
        if isinstance(command, CallFunction):
            return command.function.call(*command.args)
        if isinstance(command, ReadBody):
            return body
        if isinstance(command, calls.Send):
            return answer
        if isinstance(command, calls.Read):
            return answers.COMPLETION_BODY
        return None

    def call() -> None:
        reply = run(gate.answer(request_from_scope(scope, OURS), Record()), perform)
        assert reply.status == 200
        if isinstance(reply, Relay):
            for event in events:
                reply.feed(event)
            reply.end()

    return call


def _nothing() -> None:
    pass


Call = Callable[[], None]

#: Each case and its baseline, whose instructions are subtracted.
WHAT: dict[str, Callable[[], tuple[Call, Call]]] = {
    "the app's other paths, ASGI": lambda: (
        asgi_call(ours_around(asgi.hello)),
        asgi_call(asgi.hello),
    ),
    "the app's other paths, WSGI": lambda: (
        wsgi_call(ours_around(wsgi.hello)),
        wsgi_call(wsgi.hello),
    ),
    "the gate, JSON": lambda: (_gate(stream=False), _nothing),
    "the gate, a stream of 100 chunks": lambda: (_gate(stream=True), _nothing),
}
#: Calls before the counted ones: for work that is done once, and for Python's adaptive interpreter.
_WARM_UP = 20

if __name__ == "__main__":
    calls_of = WHAT[sys.argv[1]]()
    for call, more in zip(calls_of, sys.argv[2:], strict=True):
        for _ in range(_WARM_UP + int(more)):
            call()
