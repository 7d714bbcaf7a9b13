"""Wattfare for Python."""
