"""The middleware with options: a cap for each plan, allowed models, a log of the usage.

uvicorn --app-dir examples options:app
"""

import secrets
from decimal import Decimal

from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from wattfare_starlette import add_wattfare

from wattfare_mw import TokenUsage

PLANS = {"ada": "pro"}
USAGE_LOG: list[str] = []


async def user_of(request: Request) -> str | None:
    return request.session.get("user_id")


def cap_of(request: Request) -> int:
    return 50 if PLANS.get(request.session["user_id"]) == "pro" else 5


async def log_usage(
    user: str | None, model: str | None, usage: TokenUsage | None, cost_usd: Decimal | None
) -> None:
    USAGE_LOG.append(f"{user} {model} {usage and usage.total_tokens} {cost_usd}")


async def sign_in(request: Request) -> Response:
    # In a real app, check a password first.
    request.session["user_id"] = request.path_params["name"]
    return Response(status_code=204)


app = Starlette(routes=[Route("/sign-in/{name}", sign_in, methods=["POST"])])
add_wattfare(
    app,
    resolve_user=user_of,
    request_limit=cap_of,
    models=["wattfare/echo", "openai/*"],
    allowed_origins=["https://app.example.com"],
    status_path="/api/budget",
    max_body_bytes=100_000,
    on_usage=log_usage,
)
app.add_middleware(SessionMiddleware, secret_key=secrets.token_hex())
