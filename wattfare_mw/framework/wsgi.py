"""For adapters of WSGI frameworks: the middleware to subclass, the neutral request, and how to
read a body within a limit."""

from ..middleware.wsgi import WattfareWSGIMiddleware, read_all, read_within, request_of

__all__ = ["WattfareWSGIMiddleware", "read_all", "read_within", "request_of"]
