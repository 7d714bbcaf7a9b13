"""The contract that framework adapters build on. These names stay stable between releases.

This module has what is common to all frameworks. :mod:`.asgi` and :mod:`.wsgi` have the
middleware of each interface. An adapter imports from here and from :mod:`wattfare_mw`, and from
nowhere else in the package.
"""

from ..app_functions import adapt
from ..error_responses import LetThrough, respond_to_error
from ..middleware.options import Options, hide_key, in_framework
from ..origins import AppCors, FindAppCors
from ..users import ResolveUser

__all__ = [
    "AppCors",
    "FindAppCors",
    "LetThrough",
    "Options",
    "ResolveUser",
    "adapt",
    "hide_key",
    "in_framework",
    "respond_to_error",
]
