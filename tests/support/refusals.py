"""What a service refuses, and who a call says pays for it: scripts for a fake one."""

from __future__ import annotations

from collections.abc import Callable

from support.upstream import Exchange

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


def payer_of(exchange: Exchange) -> tuple[str | None, str | None]:
    """The user and the grant that a call names."""
    return exchange.headers.get("x-wattfare-user"), exchange.headers.get("x-wattfare-grant")
