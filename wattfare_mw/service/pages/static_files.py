"""The style sheet, the scripts and the icon of the pages. Each has its hash in its name, so that a
browser can keep it for ever."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..api.framing import allow_caching

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Where the files are served.
PREFIX = "/pages"
IMMUTABLE = "public, max-age=31536000, immutable"


def _hashed(file: Path, content: bytes) -> str:
    return f"{file.stem}.{hashlib.sha256(content).hexdigest()[:16]}{file.suffix}"


def _read() -> tuple[dict[str, str], dict[str, tuple[bytes, str]]]:
    urls: dict[str, str] = {}
    files: dict[str, tuple[bytes, str]] = {}
    for file in sorted(_FOLDER.iterdir()):
        if file.suffix in _TYPES:
            content = file.read_bytes()
            name = _hashed(file, content)
            urls[file.name] = f"{PREFIX}/{name}"
            files[name] = (content, _TYPES[file.suffix])
    return urls, files


_URLS, _FILES = _read()


def static(name: str) -> str:
    """The path of a file in ``static/``, for templates.

    Raises:
        KeyError: there is no such file.
    """
    return _URLS[name]


async def serve_static(request: Request) -> Response:
    """``GET /pages/{name}``."""
    found = _FILES.get(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    content, media_type = found
    allow_caching(request.scope)
    headers = {
        "cache-control": IMMUTABLE,
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
    }
    # Given as a header, so that Starlette adds no charset of its own.
    return Response(content, headers={**headers, "content-type": media_type})
