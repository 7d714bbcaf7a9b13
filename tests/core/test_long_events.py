"""One event that comes in very many chunks, as a picture in base64 does."""

from __future__ import annotations

import time

from wattfare_mw.sse import Splitter


def test_a_long_event_takes_no_more_than_its_length() -> None:
    splitter = Splitter()
    data = b"data: " + b"x" * (4 * 2**20)
    began = time.thread_time()
    for at in range(0, len(data), 100):
        assert splitter.feed(data[at : at + 100]) == b""
    # The square of it, in these chunks, is a minute and more.
    assert time.thread_time() - began < 5
    assert splitter.feed(b"\r") == b""
    assert splitter.feed(b"\n\r") == data + b"\r\n\r"
    assert splitter.feed(b"\nrest") == b"\n"
    assert splitter.rest == b"rest"
