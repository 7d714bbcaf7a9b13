"""The signed-in user of a request, by a session cookie as in a small app."""

from __future__ import annotations

from wattfare_mw import Request

#: The cookie of the requests under load.
COOKIE = "session=s3cr3t"
_USERS = {"s3cr3t": "user_1"}


def signed_in_user(request: Request) -> str | None:
    return _USERS.get(request.cookies.get("session", ""))


async def signed_in_user_async(request: Request) -> str | None:
    return signed_in_user(request)
