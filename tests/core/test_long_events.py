"""One event in very many chunks, such as a picture in base64."""

from __future__ import annotations

import time

from wattfare_mw.sse import Splitter


def test_long_event_takes_linear_time() -> None:
    splitter = Splitter()
    data = b"data: " + b"x" * (4 * 2**20)
    began = time.thread_time()
    for at in range(0, len(data), 100):
        assert splitter.feed(data[at : at + 100]) == b""
    # Quadratic time would be over a minute here.
    assert time.thread_time() - began < 5
    assert splitter.feed(b"\r") == b""
    assert splitter.feed(b"\n\r") == data + b"\r\n\r"
    assert splitter.feed(b"\nrest") == b"\n"
    assert splitter.rest == b"rest"
