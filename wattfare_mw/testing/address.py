"""The address and the keys of the service, which are known before the service runs.

An app may read them from the environment when it is imported, before the first test. pytest loads
this module in each run, so it imports only the standard library.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping

#: The app id in the address's keys. It means the app of the current test.
STANDING_APP = "tests"
#: The hosts to call without a proxy.
_LOCAL = "127.0.0.1"
_PROXIES = ("HTTP_PROXY", "ALL_PROXY")


class Address:
    """A reserved port of this machine, and two keys.

    Attributes:
        url: the service's address, such as ``http://127.0.0.1:49152``.
        port: the reserved port.
        secret_key: the secret key of the current test's app.
        publishable_key: the publishable key of the current test's app.
    """

    def __init__(self) -> None:
        # The socket is bound but does not listen, so requests are refused until the service runs.
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.bind((_LOCAL, 0))
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://{_LOCAL}:{self.port}"
        self.secret_key = f"sk_test_{STANDING_APP}_{secrets.token_hex(24)}"
        self.publishable_key = f"pk_test_{STANDING_APP}_{secrets.token_hex(24)}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables for the app."""
        return environ(self.url, self.secret_key, self.publishable_key)

    def close(self) -> None:
        """Release the port."""
        self.socket.close()

    def __repr__(self) -> str:
        return f"Address({self.url!r})"


def environ(url: str, secret_key: str, publishable_key: str) -> dict[str, str]:
    """The environment variables for an app that calls this service."""
    variables = {
        "WATTFARE_BASE_URL": url,
        "WATTFARE_SECRET_KEY": secret_key,
        "WATTFARE_PUBLISHABLE_KEY": publishable_key,
    }
    if any(os.environ.get(name) or os.environ.get(name.lower()) for name in _PROXIES):
        for name in ("NO_PROXY", "no_proxy"):
            hosts = os.environ.get(name)
            variables[name] = f"{hosts},{_LOCAL}" if hosts else _LOCAL
    return variables


class Environment:
    """Sets environment variables, until :meth:`restore` is called.

    Args:
        variables: the names and values.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._former = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)

    def restore(self) -> None:
        """Restore the previous values."""
        for name, value in self._former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._former = {}

    def __repr__(self) -> str:
        return "Environment()"


#: The address that was reserved for the first service of this process, until a service takes it.
_reserved: Address | None = None


def reserve_address() -> Address:
    """Reserve the address of this process's first service."""
    global _reserved
    if _reserved is None:
        _reserved = Address()
    return _reserved


def release_address() -> None:
    """Release the reserved address, if no service has taken it."""
    global _reserved
    if _reserved is not None:
        _reserved.close()
        _reserved = None


def take_address() -> Address:
    """The address for a new service: the reserved one or a new one."""
    global _reserved
    address, _reserved = _reserved or Address(), None
    return address
