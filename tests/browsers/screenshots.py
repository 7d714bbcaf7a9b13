"""Pictures of pages for the docs: WebP, at most 60 kB each.

Each test run takes them and checks their size. They are saved to the folder in the variable
WATTFARE_SCREENSHOTS; `make screenshots` sets it to `docs/img`.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page

from browsers.people import DESKTOP, PHONE

#: The largest file, in bytes.
LARGEST = 60_000
SIZES = {"phone": PHONE, "desktop": DESKTOP}


def take(page: Page, name: str) -> None:
    """Takes four pictures of this page: light and dark, phone and desktop."""
    before = page.viewport_size
    for size, viewport in SIZES.items():
        page.set_viewport_size(viewport)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            _take(page, f"{name}-{size}-{scheme}")
    page.emulate_media(color_scheme="light")
    if before is not None:
        page.set_viewport_size(before)


def take_one(page: Page, name: str, scheme: Literal["light", "dark"] = "light") -> None:
    """Takes one picture of this page as it is."""
    page.emulate_media(color_scheme=scheme)
    _take(page, name)


def _take(page: Page, name: str) -> None:
    # Playwright itself supports only PNG and JPEG. Keep the session: closing it would remove the
    # page's virtual passkey device.
    session = page.context.new_cdp_session(page)
    page.evaluate("document.fonts.ready")
    for quality in (80, 60, 40):
        options = {"format": "webp", "quality": quality, "captureBeyondViewport": False}
        picture = base64.b64decode(session.send("Page.captureScreenshot", options)["data"])
        if len(picture) <= LARGEST:
            break
    assert len(picture) <= LARGEST, name
    folder = os.environ.get("WATTFARE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.webp").write_bytes(picture)
