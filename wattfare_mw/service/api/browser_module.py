"""``GET /wattfare.js``: the module for browsers, under a name that has its hash."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ... import browser
from .framing import allow_caching

#: How long a browser may keep the redirect to the present version, in seconds.
REDIRECT_SECONDS = 300
_HEADERS = {
    # For `integrity` on a page of another origin, and for a page with `require-corp`.
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
}


def _hashed(name: str) -> str:
    stem, dot, suffix = name.partition(".")
    return f"{stem}.{browser.asset(name).digest}{dot}{suffix}"


_NAMES = {_hashed(name): name for name in (browser.MODULE, browser.DECLARATIONS)}


async def _present(request: Request) -> Response:
    allow_caching(request.scope)
    headers = {**_HEADERS, "cache-control": f"public, max-age={REDIRECT_SECONDS}"}
    # Relative, since only the operator knows under which address this is reached.
    return RedirectResponse(_hashed(request.url.path.rpartition("/")[2]), 307, headers)


async def _version(request: Request) -> Response:
    name = _NAMES.get(request.url.path.rpartition("/")[2])
    if name is None:  # of another version
        raise HTTPException(404)
    asset = browser.asset(name)
    allow_caching(request.scope)
    headers = {
        **_HEADERS,
        "cache-control": "public, max-age=31536000, immutable",
        "content-type": asset.media_type,
        "etag": asset.etag,
    }
    return Response(asset.content, headers=headers)


def browser_routes() -> list[Route]:
    """The paths of the module and of its types."""
    return [
        Route(f"/{browser.MODULE}", _present),
        Route(f"/{browser.DECLARATIONS}", _present),
        Route("/wattfare.{digest}.js", _version),
        Route("/wattfare.{digest}.d.ts", _version),
    ]
