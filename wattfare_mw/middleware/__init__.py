"""Private: ``WattfareMiddleware``. It wraps an app, and adds paths for AI calls that the app's
users pay for.

:mod:`.gate` makes all decisions. Its drivers :mod:`.asgi` and :mod:`.wsgi` do the I/O. Only the
names in ``__all__`` are public.
"""

from .factory import WattfareMiddleware

__all__ = ["WattfareMiddleware"]
