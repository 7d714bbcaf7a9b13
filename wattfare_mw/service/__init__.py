"""A Wattfare-compatible service to run yourself: the protocol over HTTP, a ledger in SQLite, and
the built-in model or an upstream of your own. Needs the extra ``wattfare-mw[service]``."""

from .asgi import create_app, create_keys
from .keys import AppKeys
from .server import serve
from .settings import Settings, secret_from_environment

__all__ = [
    "AppKeys",
    "Settings",
    "create_app",
    "create_keys",
    "secret_from_environment",
    "serve",
]
