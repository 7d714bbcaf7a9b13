"""Reads, checks, bounds, prices and meters one chat request. No I/O."""
