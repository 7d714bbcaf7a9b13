"""Ports for servers that cannot choose one themselves, and a port without a server."""

from __future__ import annotations

import atexit
import random
import socket
from functools import cache


def free_port() -> int:
    """A port that nobody uses now.

    It is below the range from which the system gives ports to connections and to servers that ask
    for any port. So nothing else on the machine takes it before the caller's server does.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            # Some connections to a server that is gone may still linger at its port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


@cache
def refused_port() -> int:
    """A port at which connections are refused, as long as this process lives."""
    # The socket keeps the port, and it never listens.
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    atexit.register(holder.close)
    return holder.getsockname()[1]
