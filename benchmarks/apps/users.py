"""Who is signed in: what a small app would do with its session cookie."""

from __future__ import annotations

from wattfare_mw import Request

#: The cookie that load comes with.
COOKIE = "session=s3cr3t"
_USERS = {"s3cr3t": "user_1"}


def signed_in_user(request: Request) -> str | None:
    return _USERS.get(request.cookies.get("session", ""))


async def signed_in_user_async(request: Request) -> str | None:
    return signed_in_user(request)
