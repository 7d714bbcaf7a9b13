"""The style sheet, the scripts and the icon of the pages. Each has its hash in its name, so that a
browser can cache it forever."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..api.framing import allow_caching
from ..hashed_files import IMMUTABLE, hashed_name

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: The path under which the files are served.
PREFIX = "/pages"


def _read() -> tuple[dict[str, str], dict[str, tuple[bytes, str]]]:
    urls: dict[str, str] = {}
    files: dict[str, tuple[bytes, str]] = {}
    for file in sorted(_FOLDER.iterdir()):
        if file.suffix in _TYPES:
            content = file.read_bytes()
            name = hashed_name(file.name, content)
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
        **IMMUTABLE,
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
        # Passed as a header, so that Starlette does not add a charset.
        "content-type": media_type,
    }
    return Response(content, headers=headers)
