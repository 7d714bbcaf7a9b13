"""The service counts rates in a Redis. None listens here, and calls go on without it."""

from real_service import real_service

with real_service("--rate-limit-storage", "redis://127.0.0.1:1") as wf:
    assert not wf.user("ann").status().connected
