"""Converts a database's URL, in the form of hosting providers, to arguments for asyncpg.

These URLs are for libpq. asyncpg supports only some of the parameters. It sends any other parameter
as a setting to the server, which then refuses the connection. This module passes each parameter on,
replaces it by an equivalent, or refuses it by name. It removes the password from the URL, so that
the frames of asyncpg do not have it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from ....errors import WattfareError, invalid_request
from ....transport import Secret, hidden

#: The schemes of such a URL. A driver's name after a plus sign is ignored.
SCHEMES = frozenset({"postgres", "postgresql"})
_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})

#: asyncpg reads these itself.
_PASSED = frozenset(
    {
        *("host", "port", "user", "dbname", "database", "passfile", "service"),
        *("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version"),
        *("target_session_attrs", "krbsrvname", "gsslib"),
    }
)
#: The server reads these.
_SETTINGS = frozenset(
    {
        *("application_name", "options", "search_path", "statement_timeout", "lock_timeout"),
        "idle_in_transaction_session_timeout",
    }
)
#: Ignored parameters, for which the defaults of the system are sufficient.
_WITHOUT_EFFECT = frozenset(
    {
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
        "tcp_user_timeout",
    }
)
#: asyncpg supports some values of these.
_ONLY = {
    "gssencmode": {"disable", "prefer"},
    "sslcompression": {"0"},
    "sslsni": {"1"},
    "load_balance_hosts": {"disable"},
    "client_encoding": {"utf8", "utf-8", "auto", "unicode"},
}
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
_MALFORMED = (
    "The database's URL is invalid. It must have the form"
    " postgresql://user:password@host:port/database. Percent-encode all characters of the user and"
    " the password except letters and digits (@ is %40, / is %2F, # is %23)."
)


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """The address of a database, and how to connect.

    Attributes:
        dsn: the URL for asyncpg, without the password.
        password: the password, or None.
        more: other arguments of :func:`asyncpg.connect`.
        connect_seconds: how long to wait for a connection, if the URL says so.
        pooled: True if a pooler gives each transaction another session, so prepared statements
            cannot be reused.
        checks_certificate: True if the certificate is checked instead of a channel binding.
    """

    dsn: Secret
    password: Secret | None = None
    more: dict[str, Any] = {}
    connect_seconds: float | None = None
    pooled: bool = False
    checks_certificate: bool = False

    def __repr__(self) -> str:
        return "Address()"

    def arguments(self) -> dict[str, Any]:
        """The arguments of :func:`asyncpg.connect` and :func:`asyncpg.create_pool`."""
        arguments = {"dsn": self.dsn, **self.more}
        password = self.password
        if password is not None:
            # A function, which asyncpg calls when it connects: it does not accept a subclass of
            # str.
            arguments["password"] = lambda: str(password)
        if self.pooled:
            arguments["statement_cache_size"] = 0
        return arguments


def is_postgresql(url: str) -> bool:
    """True if this is the URL of a PostgreSQL database."""
    scheme, separator, _ = url.partition("://")
    return separator != "" and scheme.partition("+")[0] in SCHEMES


def read(url: str) -> Address:
    """The address in this URL.

    Raises:
        WattfareError: ``invalid_request``; the URL is invalid, or has a parameter that is not
            supported. The message names the parameter, and never a password.
    """
    url = hidden(url)
    failure: WattfareError | None = None
    try:
        return _read(url)
    except WattfareError as error:
        failure = error.with_traceback(None)  # the frames have parts of the URL
    except ValueError:  # the message has a part of the URL
        failure = invalid_request(_MALFORMED)
    raise failure


def _read(url: str) -> Address:
    parts = urlsplit(Secret("postgresql://" + url.partition("://")[2]))
    user, password, hosts = _authority(parts.netloc)
    if parts.fragment or ("@" in parts.path + parts.query and "@" not in parts.netloc):
        raise invalid_request(_MALFORMED)
    # If a parameter is given twice, the last one counts, as in libpq.
    query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    password = query.pop("password", password)
    if "port" in query:
        for port in query["port"].split(","):
            _check_port(port)
    reader = _Parameters(hosts or query.get("host") or os.environ.get("PGHOST", ""))
    for name, value in query.items():
        reader.take(name, value)
    reader.bind_channel()
    authority = f"{quote(user, safe='')}@{hosts}" if user else hosts
    return Address(
        dsn=Secret(f"postgresql://{authority}{parts.path}?{urlencode(reader.passed)}".rstrip("?")),
        password=Secret(password) if password else None,
        more={**reader.more, **({"server_settings": reader.settings} if reader.settings else {})},
        connect_seconds=reader.connect_seconds,
        pooled=reader.pooled,
        checks_certificate=reader.checks_certificate,
    )


def _authority(netloc: str) -> tuple[str, str | None, str]:
    """The user, the password and the hosts. The password may have an unescaped @."""
    credentials, _, hosts = netloc.rpartition("@")
    user, given, password = credentials.partition(":")
    for host in hosts.split(","):
        # An IPv6 address has brackets.
        _, colon, port = host.rpartition("]")[2].partition(":")
        if colon and port:
            _check_port(port)
    return unquote(user), Secret(unquote(password)) if given else None, hosts


def _check_port(port: str) -> None:
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise ValueError


class _Parameters:
    """The meaning of a URL's parameters."""

    def __init__(self, hosts: str) -> None:
        self.passed: dict[str, str] = {}
        self.more: dict[str, Any] = {}
        self.settings: dict[str, str] = {}
        self.connect_seconds: float | None = None
        self.pooled = False
        self.checks_certificate = False
        self._local = all(map(_is_local, hosts.split(",")))
        self._binding = "prefer"

    def take(self, name: str, value: str) -> None:
        """Take one parameter."""
        if name in _PASSED:
            self.passed[name] = value
        elif name in _SETTINGS:
            self.settings[name] = value
        elif name in _ONLY:
            if value.lower() not in _ONLY[name]:
                raise _unsupported(name)
        elif (special := _SPECIAL.get(name)) is not None:
            special(self, name, value)
        elif name not in _WITHOUT_EFFECT:
            raise invalid_request(
                f"The database's URL has an unsupported parameter: {name[:64]!r}."
            )

    def bind_channel(self) -> None:
        """Apply ``channel_binding`` after all parameters are read.

        asyncpg has no channel binding, which proves that there is no third party between the client
        and the server. Checking the certificate proves the same. A connection to the same machine
        does not need this.
        """
        if self._binding != "require" or self._local:
            return
        mode = self.passed.pop("sslmode", "require")
        if mode == "disable":
            raise invalid_request("`channel_binding=require` needs TLS: leave out `sslmode`.")
        self.checks_certificate = True
        if self.passed.get("sslrootcert", "system") != "system":
            self.passed["sslmode"] = "verify-full"
            return
        self.passed.pop("sslrootcert", None)
        self._check_by_system()

    def ssl_mode(self, name: str, value: str) -> None:
        mode = value.lower()
        if name == "ssl" and mode in _TRUE:
            mode = "require"
        elif name == "ssl" and mode in _FALSE:
            mode = "disable"
        if mode == "no-verify":
            mode = "require"
        if mode not in _SSL_MODES:
            raise invalid_request(f"`{name}` must be one of {', '.join(sorted(_SSL_MODES))}.")
        self.passed["sslmode"] = mode

    def _check_by_system(self) -> None:
        import httpx

        # With the same certificates as for the upstream: SSL_CERT_FILE, or the usual ones.
        context = httpx.create_ssl_context()
        context.set_alpn_protocols(["postgresql"])
        self.more["ssl"] = context

    def channel_binding(self, name: str, value: str) -> None:
        if value not in ("disable", "prefer", "require"):
            raise invalid_request(f"`{name}` must be one of disable, prefer, require.")
        self._binding = value

    def connect_timeout(self, name: str, value: str) -> None:
        if not value.isascii() or not value.removeprefix("-").isdigit():
            raise invalid_request(f"`{name}` must be a whole number of seconds.")
        self.connect_seconds = float(value[:9]) if int(value[:9]) > 0 else None  # 0 is no limit

    def pooler(self, name: str, value: str) -> None:
        if value.lower() not in _TRUE | _FALSE:
            raise invalid_request(f"`{name}` must be true or false.")
        self.pooled |= value.lower() in _TRUE

    def no_cache(self, name: str, value: str) -> None:
        if value != "0":
            raise invalid_request(f"`{name}` must be 0, which is the same as `pgbouncer=true`.")
        self.pooled = True

    def fallback_name(self, _name: str, value: str) -> None:
        self.settings.setdefault("application_name", value)

    def negotiation(self, name: str, value: str) -> None:
        if value not in ("postgres", "direct"):
            raise invalid_request(f"`{name}` must be postgres or direct.")
        if value == "direct":
            self.more["direct_tls"] = True


_SPECIAL: Mapping[str, Callable[[_Parameters, str, str], None]] = {
    "sslmode": _Parameters.ssl_mode,
    "ssl": _Parameters.ssl_mode,
    "channel_binding": _Parameters.channel_binding,
    "connect_timeout": _Parameters.connect_timeout,
    "pgbouncer": _Parameters.pooler,
    "statement_cache_size": _Parameters.no_cache,
    "prepared_statement_cache_size": _Parameters.no_cache,
    "fallback_application_name": _Parameters.fallback_name,
    "sslnegotiation": _Parameters.negotiation,
}


def _unsupported(name: str) -> WattfareError:
    allowed = " or ".join(sorted(_ONLY[name]))
    return invalid_request(f"`{name}` in the database's URL may be {allowed} only.")


def _is_local(host: str) -> bool:
    """True if this is a socket of this machine. So is an empty host."""
    name = unquote(host)
    if name == "" or name.startswith("/"):
        return True
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
