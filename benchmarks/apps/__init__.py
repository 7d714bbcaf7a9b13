"""Ours: the middleware around an app that does next to nothing."""
