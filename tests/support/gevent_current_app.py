"""A Flask app with a global model of the current user, for gunicorn's workers."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flask
from wattfare_flask import WattfareMiddleware, get_user

from wattfare_mw import WattfareCurrentUserError, current_user

app = flask.Flask(__name__)
model = current_user.model("wattfare/echo")
#: Its threads are greenlets under gevent. The first request starts them.
pool = ThreadPoolExecutor(2)


async def who(request: flask.Request) -> str | None:
    """Returns the user that the request names, after waits like those of a real function."""
    await asyncio.sleep(0.01)
    return request.headers.get("x-me")


# Key and address are in the environment.
WattfareMiddleware(app, resolve_user=who, current_user=True)


def text() -> str:
    """``u3`` sends three words."""
    return " ".join(["w"] * int(flask.request.headers["x-me"][1:]))


def outcome(call: Callable[[], Any]) -> str:
    """Returns the result of the call, or a note that there is no current user."""
    try:
        return call()
    except WattfareCurrentUserError:
        return "none"


@app.get("/whole")
def whole() -> str:
    return model.generate(text()).text


@app.get("/openai")
def of_openai() -> str:
    answer = (
        get_user()
        .openai()
        .chat.completions.create(
            model="wattfare/echo", messages=[{"role": "user", "content": text()}]
        )
    )
    return answer.choices[0].message.content or ""


@app.get("/stream")
def stream() -> flask.Response:
    asked = text()

    def body() -> Iterator[str]:
        for _ in range(2):
            with model.stream(asked) as answer:
                yield from answer.text_stream

    return flask.Response(body())


@app.get("/pool")
def in_pool() -> list[str]:
    asked = text()
    plain = pool.submit(outcome, lambda: model.generate(asked).text)
    context = contextvars.copy_context()
    copied = pool.submit(context.run, outcome, lambda: model.generate(asked).text)
    return [plain.result(), copied.result()]


@app.get("/thread")
def in_thread() -> list[str]:
    """Runs it in a thread of this request, or in a greenlet if threads are greenlets."""
    found: list[str] = []
    asked = text()

    def job() -> None:
        found.append(outcome(lambda: model.generate(asked).text))

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    return found
