"""``GET /wattfare.js``: redirects to the module for browsers. The module's name has a hash of its
content."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ... import browser
from ..hashed_files import IMMUTABLE, hashed_name
from .framing import allow_caching

#: How long a browser may cache the redirect to the current version, in seconds.
REDIRECT_SECONDS = 300
_HEADERS = {
    # A page of another origin needs these headers for `integrity`. A page with `require-corp` needs
    # them, too.
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
}
#: The module and its types, and their media types.
_TYPES = {
    "wattfare.js": "text/javascript; charset=utf-8",
    "wattfare.d.ts": "text/plain; charset=utf-8",
}
_FILES = {name: browser.read(name) for name in _TYPES}
_NAMES = {hashed_name(name, content): name for name, content in _FILES.items()}


async def _present(request: Request) -> Response:
    allow_caching(request.scope)
    headers = {**_HEADERS, "cache-control": f"public, max-age={REDIRECT_SECONDS}"}
    # The redirect is relative, because a proxy may serve this path under another prefix.
    name = request.url.path.rpartition("/")[2]
    return RedirectResponse(hashed_name(name, _FILES[name]), 307, headers)


async def _version(request: Request) -> Response:
    version = request.url.path.rpartition("/")[2]
    name = _NAMES.get(version)
    if name is None:  # the name belongs to another version
        raise HTTPException(404)
    allow_caching(request.scope)
    headers = {
        **_HEADERS,
        **IMMUTABLE,
        "content-type": _TYPES[name],
        "etag": f'"{version}"',
    }
    return Response(_FILES[name], headers=headers)


def browser_routes() -> list[Route]:
    """The paths of the module and of its types."""
    return [
        *(Route(f"/{name}", _present) for name in _FILES),
        Route("/wattfare.{digest}.js", _version),
        Route("/wattfare.{digest}.d.ts", _version),
    ]
