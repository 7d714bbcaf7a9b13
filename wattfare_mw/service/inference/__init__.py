"""Runs each inference call from its reservation to its settlement, and keeps the lease."""
