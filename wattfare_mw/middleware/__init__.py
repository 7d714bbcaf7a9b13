"""``WattfareMiddleware``: an existing app, and in front of it the paths whose AI calls its users
pay for. :mod:`.gate` decides, :mod:`.asgi` and :mod:`.wsgi` drive it."""

from .factory import WattfareMiddleware

__all__ = ["WattfareMiddleware"]
