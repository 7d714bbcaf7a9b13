"""Helpers for tests: real servers on real sockets, started and stopped for one test."""
