"""A Flask app with an async ``resolve_user``, for gunicorn's gevent worker."""

from __future__ import annotations

import asyncio
import time

import flask
from wattfare_flask import WattfareMiddleware, get_user

app = flask.Flask(__name__)

#: The number of calls that resolve their user now, and its maximum.
at_once = {"now": 0, "most": 0}


def nested(user: str) -> str:
    """Raises a RecursionError."""
    return nested(user)


async def resolve_user(request: flask.Request) -> str | None:
    """Returns the user that the request names, after waits like those of a real function."""
    at_once["now"] += 1
    at_once["most"] = max(at_once.values())
    try:
        await asyncio.sleep(0.2)
        # A host name and a function in a thread: gevent patches both.
        await asyncio.get_running_loop().getaddrinfo("localhost", 80)
        await asyncio.to_thread(time.sleep, 0.01)
        user = request.headers.get("x-me")
        return nested(user) if user == "endless" else user
    finally:
        at_once["now"] -= 1


WattfareMiddleware(app, resolve_user=resolve_user)


@app.get("/sync")
def sync_view() -> str:
    return get_user().id


@app.get("/async")
async def async_view() -> str:
    return get_user().id


@app.get("/most")
def most() -> str:
    return str(at_once["most"])
