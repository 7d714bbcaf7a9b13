"""Answers that every adapter must give, requested through its framework's test client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from support.drivers import INFERENCE, JSON, MODELS, STATUS, TOKEN


def ask(model: str = "openai/gpt-4o", **fields: Any) -> str:
    """An inference body."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "a b"}], **fields})


def cost(words: int) -> float:
    """The built-in model's cost for this many words, sent once and repeated once."""
    return round(words * 0.000003, 9)


@dataclass
class Refused:
    """A refused request, and its refusal."""

    method: str
    path: str
    status: int
    code: str
    headers: dict[str, str]
    body: str = ""
    allow: str | None = None


REFUSED = [
    Refused("GET", TOKEN, 405, "invalid_request", {}, allow="POST"),
    Refused("PROPFIND", TOKEN, 405, "invalid_request", {}, allow="POST"),
    Refused("OPTIONS", TOKEN, 405, "invalid_request", {}, allow="POST"),
    Refused("DELETE", INFERENCE, 405, "invalid_request", {}, allow="POST"),
    Refused("POST", STATUS, 405, "invalid_request", {}, allow="GET, HEAD, DELETE"),
    Refused("PATCH", MODELS, 405, "invalid_request", {}, allow="GET, HEAD"),
    Refused("POST", INFERENCE, 415, "invalid_request", {"content-type": "text/plain"}, ask()),
    Refused("POST", INFERENCE, 400, "invalid_request", JSON, "{"),
    Refused("POST", INFERENCE, 403, "invalid_request", JSON, ask("openai/o1")),
    Refused("POST", INFERENCE, 413, "invalid_request", JSON, ask(user="x" * 2000)),
    Refused("POST", TOKEN, 403, "invalid_request", {"sec-fetch-site": "cross-site"}),
    Refused("POST", TOKEN, 401, "auth", {"x-signed-out": "1"}),
    Refused("POST", INFERENCE, 401, "auth", {**JSON, "x-signed-out": "1"}, ask()),
    Refused("GET", STATUS, 401, "auth", {"x-signed-out": "1"}),
    Refused(
        "OPTIONS",
        TOKEN,
        403,
        "invalid_request",
        {"origin": "https://evil.example", "access-control-request-method": "POST"},
    ),
]
#: Options of a middleware that refuses all of these.
REFUSING: dict[str, Any] = {
    "models": ["openai/gpt-4o"],
    "max_body_bytes": 1000,
    "allowed_origins": ["https://app.example"],
}
PREFLIGHT = {
    "origin": "https://app.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type",
}


def check_refused(refused: Refused, status: int, headers: Any, body: bytes) -> None:
    """Checks an answer in the protocol's form."""
    assert status == refused.status, body
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert json.loads(body)["error"]["code"] == refused.code
    assert headers.get("allow") == refused.allow


def check_preflight(status: int, headers: Any) -> None:
    """Checks an allowed preflight, answered by us and not by the framework."""
    assert status == 204
    assert headers["access-control-allow-origin"] == "https://app.example"
    assert headers["access-control-allow-methods"] == "POST"
    assert headers["access-control-allow-headers"] == "content-type"
    assert headers["access-control-allow-credentials"] == "true"
