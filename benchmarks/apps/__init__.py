"""Our middleware around a minimal app."""
