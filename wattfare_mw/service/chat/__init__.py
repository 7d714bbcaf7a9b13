"""One chat request: read, checked, bounded, priced and metered. No I/O."""
