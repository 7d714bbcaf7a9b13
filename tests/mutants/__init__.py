"""Faults put into a copy of the code on purpose: for each, a test that is named must fail."""
