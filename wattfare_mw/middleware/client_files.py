"""The files that the middleware serves to browsers: ``wattfare.js``, and the page to which the
service returns a browser after an approval."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

import msgspec

from .. import browser
from ..web import Response

#: The name of this page. ``wattfare.js`` expects it in its own folder.
RETURN_PAGE = "wattfare-return"
#: How long a browser may cache a file, in seconds.
CACHE_SECONDS = 300


class ClientFile(msgspec.Struct, frozen=True):
    """A file and the headers of its response."""

    body: bytes
    headers: dict[str, str]

    def response(self, if_none_match: str | None) -> Response:
        """The response with the file, or a 304 if the browser already has the file."""
        known = if_none_match or ""
        if known.strip() == "*" or self.headers["etag"] in known:
            return Response(304, dict(self.headers), b"")
        return Response(200, dict(self.headers), self.body)


def at(client_path: str | None) -> dict[str, ClientFile]:
    """The files by their paths.

    Args:
        client_path: the path of ``wattfare.js``. None serves no files.

    Raises:
        ValueError: the path does not end in ``.js``.
    """
    if client_path is None:
        return {}
    if not client_path.endswith(".js"):
        raise ValueError("client_path must be a path that ends in .js, such as /wattfare.js")
    folder, _, name = client_path.rpartition("/")
    return {
        client_path: _file(browser.read("wattfare.js"), "text/javascript; charset=utf-8"),
        f"{folder}/{RETURN_PAGE}": _file(_return_page(name), "text/html; charset=utf-8", _POLICY),
    }


def _return_page(name: str) -> bytes:
    # The app chooses the name of the module, so quote it as a part of a URL.
    return browser.read("return.html").replace(b"wattfare.js", quote(name).encode())


#: The page loads one module and nothing else, and cannot be framed.
_POLICY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; img-src data:; base-uri 'none'; "
        "frame-ancestors 'none'; form-action 'none'"
    ),
    "referrer-policy": "no-referrer",
}


def _file(body: bytes, content_type: str, more: dict[str, str] | None = None) -> ClientFile:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {
        "content-type": content_type,
        "etag": etag,
        "cache-control": f"public, max-age={CACHE_SECONDS}",
        "x-content-type-options": "nosniff",
        **(more or {}),
    }
    return ClientFile(body, headers)
