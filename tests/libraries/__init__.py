"""Real packages of AI libraries against the real service."""
