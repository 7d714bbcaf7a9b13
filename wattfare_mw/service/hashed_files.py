"""Files that browsers cache forever. Each name has a hash, so new content has a new name."""

from __future__ import annotations

import hashlib

#: The header of a file with a hash in its name.
IMMUTABLE = {"cache-control": "public, max-age=31536000, immutable"}


def hashed_name(name: str, content: bytes) -> str:
    """The name of a file with its hash in front of its first dot: ``style.0123456789abcdef.css``
    for ``style.css``."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}.{hashlib.sha256(content).hexdigest()[:16]}{dot}{suffix}"
