"""Scripts of a fake service: refusals, and the payer that a call names."""

from __future__ import annotations

from collections.abc import Callable

from support.upstream import Exchange, Upstream, completion_of

KEY = "sk_test_app1_dontyoutellanyone"
TOKEN = "gr_dontyoutellanyone"


def refuses(status: int, code: str, **headers: str) -> Callable[[Exchange], None]:
    """A script that refuses each call."""

    def script(exchange: Exchange) -> None:
        error = {
            "code": code,
            "message": "No.",
            "neededUsd": 0.01,
            "remainingUsd": 0.005,
            "limitedBy": "cap",
        }
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.answer({"error": error}, status=status, headers={"x-request-id": "r1", **named})

    return script


def calls_a_tool_then_refuses(fake: Upstream, tool: str) -> Callable[[Exchange], None]:
    """A script that answers the first call with a tool call and refuses all others."""
    refuse = refuses(402, "budget_exceeded")

    def script(exchange: Exchange) -> None:
        if len(fake.calls) > 1:
            refuse(exchange)
            return
        call = {"id": "c", "type": "function", "function": {"name": tool, "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        exchange.answer({**completion_of(""), "choices": [choice]})

    return script


def payer_of(exchange: Exchange) -> tuple[str | None, str | None]:
    """The user and the grant that a call names."""
    return exchange.headers.get("x-wattfare-user"), exchange.headers.get("x-wattfare-grant")
