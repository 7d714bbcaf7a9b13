"""The JavaScript for browsers, as the middleware and the service send it."""

from __future__ import annotations

import hashlib
import html
from functools import cache
from pathlib import Path
from urllib.parse import quote

import msgspec

_FOLDER = Path(__file__).parent
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
}
#: The module, and its types.
MODULE = "wattfare.js"
DECLARATIONS = "wattfare.d.ts"
#: The last part of the path of the return page. The module looks for it beside itself.
RETURN_PAGE = "wattfare-return"
#: What the return page may load: the module, and an empty icon.
RETURN_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_RETURN_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Back to the app</title>
<link rel="icon" href="data:,">
<script type="module" src="{source}"></script>
<main>
<h1>Back to the app</h1>
<p role="status" data-wattfare-return="Nothing was connected here. Go back to the app and start \
there.">You can close this window.</p>
<noscript><p>The app needs JavaScript to connect your budget.</p></noscript>
</main>
</html>
"""


class Asset(msgspec.Struct, frozen=True):
    """A file to send.

    Attributes:
        digest: 16 hex digits of the SHA-256 of the content.
    """

    content: bytes
    media_type: str
    digest: str

    @property
    def etag(self) -> str:
        """The value of the ``ETag`` header."""
        return f'"{self.digest}"'


@cache
def asset(name: str) -> Asset:
    """One of the files: :data:`MODULE` or :data:`DECLARATIONS`."""
    file = _FOLDER / name
    content = file.read_bytes()
    return Asset(content, _TYPES[file.suffix], hashlib.sha256(content).hexdigest()[:16])


def return_page(module: str) -> bytes:
    """The page to which the service sends a browser back. It passes the answer on to the page that
    asked, and closes itself.

    Args:
        module: the name of the module, in the same folder as the page.
    """
    return _RETURN_PAGE.format(source=html.escape(quote(module))).encode()
