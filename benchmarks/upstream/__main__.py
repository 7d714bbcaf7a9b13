"""``python -m benchmarks.upstream PORT``."""

import socket
import sys

from .server import Server

with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096) as listener:
    Server(listener).run()
