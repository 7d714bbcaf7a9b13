"""Bodies sent with made-up grants take no memory from users or from other addresses."""

from __future__ import annotations

import json
import select
import socket
import sys

import pytest
from support.drivers import INFERENCE
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.patience import PATIENCE
from support.servers import uvicorn_process
from support.service import chat_body
from support.sockets import head_of
from support.victim import MB, MOST_MEMORY, Memory, victim_at

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="has no other loopback addresses")

SIZE = 20 * MB


def test_made_up_grants_of_one_address_take_bounded_memory(fake: FakeWattfare) -> None:
    env = {"WATTFARE_SECRET_KEY": SECRET_KEY, "WATTFARE_BASE_URL": fake.url}
    body = json.dumps(chat_body("x" * MB, model="fake/model")).encode()
    with uvicorn_process("support.middleware_app:guarded", env=env) as ((host, port), pid):

        def post(source: str, headers: dict[str, str], size: int, body: bytes) -> socket.socket:
            client = socket.create_connection((host, port), PATIENCE, (source, 0))
            client.sendall(head_of(INFERENCE, headers, size) + body)
            return client

        url = f"http://{host}:{port}{INFERENCE}"
        with victim_at(url, {"x-me": "victim"}):
            memory = Memory(pid)
            # One address may send three of them at a time.
            clients = [
                post("127.0.0.2", {"x-wattfare-grant": f"gt_{number}"}, SIZE, b" " * (SIZE - 1))
                for number in range(4)
            ]
            answered, _, _ = select.select(clients, [], [], PATIENCE)
            assert [client.recv(100)[:13] for client in answered] == [b"HTTP/1.1 503 "]
            for source, headers in (
                ("127.0.0.3", {"x-wattfare-grant": "gt_y"}),
                ("127.0.0.2", {"x-me": "u1"}),
            ):
                client = post(source, headers, len(body), body)
                assert client.recv(100).startswith(b"HTTP/1.1 200 ")
                client.close()
            assert memory.grown() < MOST_MEMORY
            for client in clients:
                client.close()
