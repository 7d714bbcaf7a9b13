"""Ports for servers that cannot choose one themselves, and a port without a server."""

from __future__ import annotations

import atexit
import random
import socket
from functools import cache


def free_port() -> int:
    """An unused port.

    It is below the range from which the system assigns ports to connections and to servers on port
    0. So nothing else on the machine takes it before the caller's server does.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            # Some connections to a stopped server may still linger on its port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


@cache
def refused_port() -> int:
    """A port that refuses connections as long as this process runs."""
    # The socket keeps the port but never listens.
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    atexit.register(holder.close)
    return holder.getsockname()[1]
