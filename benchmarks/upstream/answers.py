"""The prepared answers of the fake upstream, as bytes: whole HTTP answers, and the chunks of
streams.

A stream is 100 events: 98 words, one chunk with the finish reason and the usage, and ``[DONE]``.
Each event is one HTTP chunk and one write, as with real providers.
"""

from __future__ import annotations

import json
from typing import Any

MODEL = "bench/model"
#: A stream of this model stays open after its first event.
IDLE_MODEL = "bench/idle"
#: The number of events in a stream.
EVENTS = 100

_USAGE = {"prompt_tokens": 21, "completion_tokens": 98, "total_tokens": 119, "cost": 0.000119}
_WORDS = ("the", "budget", "of", "a", "user", "pays", "for", "every", "call")
_TEXT = " ".join(_WORDS[i % len(_WORDS)] for i in range(98))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _whole(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def _event(choices: list[Any], **more: Any) -> bytes:
    chunk = {
        "id": "gen-1730000000-AbCdEfGhIjKlMnOpQrSt",
        "object": "chat.completion.chunk",
        "created": 1730000000,
        "model": MODEL,
        "choices": choices,
        **more,
    }
    return b"data: " + _json(chunk) + b"\n\n"


def _word(i: int) -> bytes:
    delta = {"role": "assistant", "content": _WORDS[i % len(_WORDS)] + " "}
    return _event([{"index": 0, "delta": delta, "finish_reason": None}])


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


COMPLETION_BODY = _json(
    {
        "id": "gen-1730000000-AbCdEfGhIjKlMnOpQrSt",
        "object": "chat.completion",
        "created": 1730000000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _TEXT},
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    }
)
SESSION_BODY = _json({"token": "st_" + "x" * 180, "expiresAt": 4102444800})
_MODELS_BODY = _json(
    {
        "data": [
            {"id": model, "pricing": {"prompt": "0.000001", "completion": "0.000001"}}
            for model in (MODEL, IDLE_MODEL)
        ]
    }
)

_EVENT_LIST = [
    *(_word(i) for i in range(EVENTS - 2)),
    _event([{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=_USAGE),
    b"data: [DONE]\n\n",
]
#: The whole body of a stream, without the framing of chunks.
STREAM_BODY = b"".join(_EVENT_LIST)
FIRST_EVENT = _EVENT_LIST[0]

COMPLETION = _whole(COMPLETION_BODY)
SESSION = _whole(SESSION_BODY)
MODELS = _whole(_MODELS_BODY)
NOTHING = _whole(b'{"error":{"code":404,"message":"There is nothing here."}}', "404 Not Found")
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
#: The writes of a stream, in order. The first one includes the headers, and the last one the end.
STREAM = [
    _HEAD + _chunk(_EVENT_LIST[0]),
    *(_chunk(event) for event in _EVENT_LIST[1:-1]),
    _chunk(_EVENT_LIST[-1]) + b"0\r\n\r\n",
]
#: The writes of a stream that stays open.
IDLE = STREAM[:1]
