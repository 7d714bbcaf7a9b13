"""Private: ``WattfareMiddleware``: wraps an app, and adds paths for AI calls that its users pay
for.

:mod:`.gate` makes all decisions. :mod:`.asgi` and :mod:`.wsgi` are its drivers. The package is
private, except for the names in ``__all__``.
"""

from .factory import WattfareMiddleware

__all__ = ["WattfareMiddleware"]
