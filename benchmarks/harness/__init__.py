"""Starts servers, puts load on them in turns, and makes ratios of what comes out."""
