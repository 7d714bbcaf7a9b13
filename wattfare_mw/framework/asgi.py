"""For adapters of ASGI frameworks: the middleware to subclass, and the neutral request."""

from ..middleware.asgi import Receive, Scope, Send, WattfareASGIMiddleware, below_mount, request_of

__all__ = ["Receive", "Scope", "Send", "WattfareASGIMiddleware", "below_mount", "request_of"]
