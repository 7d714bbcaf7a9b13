"""How long a test waits for an event that should come soon."""

from __future__ import annotations

#: In seconds. It is long, because a test machine may be slow.
PATIENCE = 60
