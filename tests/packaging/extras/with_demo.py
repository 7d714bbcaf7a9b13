"""``wattfare demo``."""

from real_service import wattfare

assert "budget_exceeded" in wattfare("demo")
