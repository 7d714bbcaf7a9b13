"""Real packages of AI libraries with the real service."""
