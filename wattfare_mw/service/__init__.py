"""Private: a Wattfare-compatible service that you can run yourself. It has the protocol's HTTP API,
a ledger in SQLite or PostgreSQL, and a built-in model. It can also call an upstream.

It needs the extra ``wattfare-mw[service]``. Only the names in ``__all__`` are public.
"""

try:
    from .asgi import create_app
    from .keys import AppKeys
    from .ledger.databases import create_keys
    from .payers.encryption import keys_from_environment as encryption_keys_from_environment
    from .server import serve
    from .settings import Settings, secret_from_environment
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] == "wattfare_mw":
        raise
    raise ModuleNotFoundError(
        f"{error.name} is not installed. Type: pip install 'wattfare-mw[service]'", name=error.name
    ) from None

__all__ = [
    "AppKeys",
    "Settings",
    "create_app",
    "create_keys",
    "encryption_keys_from_environment",
    "secret_from_environment",
    "serve",
]
