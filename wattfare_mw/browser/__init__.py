"""Private: the files for browsers: ``wattfare.js``, its types, and the page to which the service
returns a browser."""

from __future__ import annotations

from importlib import resources


def read(name: str) -> bytes:
    """The content of the file with this name."""
    return (resources.files(__name__) / name).read_bytes()
