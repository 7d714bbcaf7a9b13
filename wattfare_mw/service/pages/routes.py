"""The routes of the pages. To add a page, write its handler in a module and add it here."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..payers.openrouter import CALLBACK_PATH
from . import approve, budget, funding, passkeys, sign_in
from .endpoints import page_route
from .static_files import PREFIX, serve_static

#: The paths whose errors are pages, not JSON.
PAGE_PREFIXES = ("/approve", "/budget", "/funding", PREFIX, "/sign-in", "/sign-out")


def page_routes() -> list[Route]:
    """All pages of the service."""
    return [
        page_route("/", _home),
        page_route("/budget", budget.overview),
        page_route("/budget/calls", budget.calls),
        page_route("/budget/calls.csv", budget.export),
        page_route("/budget/ended", budget.ended),
        page_route("/budget/connections/{key}", budget.change, ["GET", "POST"]),
        page_route("/budget/connections/{key}/stop", budget.stop, ["POST"]),
        page_route("/budget/grants/{key}/stop", budget.stop_grant, ["POST"]),
        page_route("/budget/delete", budget.delete, ["GET", "POST"]),
        page_route("/budget/passkeys", passkeys.overview),
        page_route("/budget/passkeys/{key}/remove", passkeys.remove, ["POST"]),
        page_route("/funding", funding.overview),
        page_route("/funding/keys", funding.add_key, ["POST"]),
        page_route("/funding/openrouter", funding.start_openrouter, ["POST"]),
        page_route(CALLBACK_PATH, funding.finish_openrouter),
        page_route("/funding/{id}/remove", funding.remove, ["GET", "POST"]),
        page_route("/approve/{id}", approve.show),
        page_route("/approve/{id}", approve.answer, ["POST"]),
        page_route("/approve/{id}/left", approve.leave, ["POST"]),
        page_route("/sign-in", sign_in.show),
        page_route("/sign-in/challenge", sign_in.challenge, ["POST"]),
        page_route("/sign-in/passkey", sign_in.with_passkey, ["POST"]),
        page_route("/sign-in/code", sign_in.with_code, ["POST"]),
        page_route("/sign-in/recovery-codes", sign_in.new_codes, ["POST"]),
        page_route("/sign-out", sign_in.sign_out, ["POST"]),
        Route(f"{PREFIX}/{{name}}", serve_static),
    ]


def is_page(path: str) -> bool:
    """True if people open this path, so errors there are pages."""
    return path == "/" or any(
        path == prefix or path.startswith(f"{prefix}/") for prefix in PAGE_PREFIXES
    )


async def _home(request: Request) -> Response:
    return RedirectResponse("/budget", 303)
