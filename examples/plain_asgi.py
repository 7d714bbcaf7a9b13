"""An ASGI app without a framework.

uvicorn --app-dir examples plain_asgi:app
"""

import secrets
from typing import Any

from wattfare_mw import Request, WattfareMiddleware

USERS: dict[str, str] = {}  # your session store: the user of each session cookie


async def signed_in_user(request: Request) -> str | None:
    return USERS.get(request.cookies.get("session", ""))


async def your_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":  # at shutdown, the middleware closes its connections
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    headers: list[tuple[bytes, bytes]] = []
    if scope["method"] == "POST" and scope["path"].startswith("/sign-in/"):
        session = secrets.token_urlsafe()
        # In a real app, check a password first.
        USERS[session] = scope["path"].removeprefix("/sign-in/")
        headers.append(
            (b"set-cookie", f"session={session}; Path=/; HttpOnly; SameSite=Lax".encode())
        )
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello from the app itself."})


app = WattfareMiddleware(your_app, resolve_user=signed_in_user)
