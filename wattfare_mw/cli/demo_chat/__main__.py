"""Serves the chat app: ``python -m wattfare_mw.cli.demo_chat flask``."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

from ...transport import Secret
from . import APPS, Chat


def main(framework: str) -> None:
    """Serve the chat app on a free port of this machine, and print its URL."""
    chat = Chat(
        publishable_key=os.environ["WATTFARE_PUBLISHABLE_KEY"],
        secret_key=Secret(os.environ["WATTFARE_SECRET_KEY"]),
        service=os.environ["WATTFARE_BASE_URL"],
    )
    app = APPS[framework](chat)
    with socket.create_server(("127.0.0.1", int(os.environ.get("PORT", "0")))) as sock:
        port: int = sock.getsockname()[1]
        print(f"listening on http://localhost:{port}", flush=True)
        if framework == "flask":
            from werkzeug.serving import make_server

            make_server("127.0.0.1", port, app, threaded=True, fd=sock.fileno()).serve_forever()
        else:
            import uvicorn

            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([sock])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1])
