"""Deliberate faults in a copy of the code: for each, a named test must fail."""
