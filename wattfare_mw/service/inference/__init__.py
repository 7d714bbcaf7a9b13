"""Runs each inference call from its reservation to its settlement, and renews the lease."""
