"""A WSGI app without a framework.

python examples/plain_wsgi.py
"""

import secrets
from typing import Any
from wsgiref.simple_server import make_server

from wattfare_mw import Request, WattfareMiddleware

USERS: dict[str, str] = {}  # your session store: the user of each session cookie


def signed_in_user(request: Request) -> str | None:
    return USERS.get(request.cookies.get("session", ""))


def your_app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    headers = [("Content-Type", "text/plain")]
    if environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"].startswith("/sign-in/"):
        session = secrets.token_urlsafe()
        # In a real app, check a password first.
        USERS[session] = environ["PATH_INFO"].removeprefix("/sign-in/")
        headers.append(("Set-Cookie", f"session={session}; Path=/; HttpOnly; SameSite=Lax"))
    start_response("200 OK", headers)
    return [b"Hello from the app itself."]


app = WattfareMiddleware(your_app, resolve_user=signed_in_user)

if __name__ == "__main__":
    make_server("127.0.0.1", 8000, app).serve_forever()
