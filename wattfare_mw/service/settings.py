"""The settings of a service, checked together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from ..errors import invalid_request
from ..transport import SecretBytes, header_key, hidden
from ..types import MAX_MODEL_CHARACTERS
from . import public_url
from .chat.allowed_fields import Policy
from .chat.families import Families
from .chat.price import MAX_RESERVATION
from .chat.request import DEFAULT_MAX_TOKENS, MAX_TOKENS
from .ledger.fundings import FundingKind
from .models.own_prices import OwnPrices
from .models.provider_facts import find_provider
from .records import DEFAULT_GRANT, DETACHED_SECONDS, UNBOUNDED_HOLD, Terms
from .tokens import Signer

DEFAULT_DATABASE = "sqlite:///wattfare.db"
DEFAULT_PORT = 8787
#: How long streams may continue after SIGTERM, in seconds.
STOP_GRACE_SECONDS = 10.0
#: The maximum size of an answer that is not a stream, in bytes.
MAX_ANSWER_BYTES = 32 * 2**20
MAX_STOP_GRACE_SECONDS = 3600
MAX_DETACHED_SECONDS = 3600
#: The maximum number of inference calls per minute in each process: of one user or grant, and of
#: one app.
CALLS_PER_USER = 600
CALLS_PER_APP = 12_000
#: The default trusted proxy: one on the same machine.
FORWARDED_ALLOW_IPS = "127.0.0.1"
#: The maximum number of running inference calls in each process: of one user or grant, and of one
#: app.
MAX_CALLS_PER_USER = 32
MAX_CALLS_PER_APP = 1000
#: The kinds of funding: the operator's key for the upstream, a key that a payer connects at
#: OpenRouter, and a payer's own key for the upstream.
Funding = Literal["operator", "openrouter", "key"]
FUNDING: tuple[Funding, ...] = ("operator", "openrouter", "key")
SECRET_VARIABLE = "WATTFARE_SERVICE_SECRET"  # noqa: S105 - the name of a variable


_NEEDS: dict[Funding, str] = {
    "operator": "--upstream-key: it is your key that pays",
    "openrouter": "OpenRouter as the --upstream",
    "key": "an --upstream",
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a service.

    Args:
        database: ``sqlite:///…`` or ``postgresql://…``.
        upstream: the base URL of an OpenAI-compatible API, ``https://…/v1``. None uses the built-in
            model.
        upstream_key: the operator's key for the upstream. With a key, the operator pays.
        user_ceiling: the maximum that each user may spend of the operator's money in a month, in
            nano-dollars; None for no limit.
        app_ceiling: the maximum that each app may spend of the operator's money in a month, in
            nano-dollars; None for no limit.
        total_ceiling: the maximum that all apps together may spend of the operator's money in a
            month, in nano-dollars; None for no limit.
        default_max_tokens: the token limit of a call that does not set one.
        allow_unpriced: True to allow models without a fixed price, on budgets with a cap.
        prices: the operator's prices, which override all others. They map a name or a pattern
            (``qwen*``) to text such as ``0.10/0.40`` or ``1/2/0.1``, in USD per million tokens of
            input, output and cached input. ``*`` is for models without another price.
        media: the token counts of images, files and audio. They map a name or a pattern to the
            tokens of an ``image``, of a ``page`` of a PDF and of an ``audio_second``, and override
            the table in ``service/chat/families.py``.
        aliases: other names of models. They map the name that clients use to the model that the
            upstream, the prices and the ledger use.
        provider: the name of the upstream's row in ``service/models/provider_facts.py``. None finds
            the row by the URL.
        metrics: True to serve ``/metrics``, without authentication.
        grant_ceiling: the maximum sum of each app's grants that the operator pays for, in
            nano-dollars; None allows no such grants.
        grant_default: the cap of a grant if the app does not ask for one, in nano-dollars.
        grant_max: the largest cap of a grant that the operator pays for, in nano-dollars; None for
            ``grant_default``.
        rate_limit_storage: ``redis://…``, to share rate limits between processes. None counts in
            each process.
        calls_per_minute_per_user: the maximum number of inference calls per minute of one user or
            grant, in each process.
        calls_per_minute_per_app: the maximum number of inference calls per minute of one app, in
            each process.
        forwarded_allow_ips: the addresses and networks of trusted proxies, separated by commas.
            Their ``X-Forwarded-For`` has the client's address. ``*`` trusts any.
        max_calls_per_user: the maximum number of running inference calls of one user or one grant,
            in each process.
        max_calls_per_app: the maximum number of running inference calls of one app, in each
            process.
        funding: the kinds of funding that can pay for calls: ``operator``, ``openrouter`` and
            ``key``. None allows all kinds that the upstream and its key support. Without
            ``operator``, the operator's key does not pay for calls.
        encryption_keys: the encryption keys for the keys of payers. The first one encrypts, and all
            of them decrypt. None uses a key in a file next to an SQLite database.
        secret: the key that signs session tokens. None uses a key that is created once and stored
            in the database.
        max_answer_bytes: the maximum size of an upstream's answer that is not a stream, in bytes.
        public_url: the URL at which people open the pages, such as
            ``https://wattfare.example.com``. None for ``http://localhost:`` and the port.
        stop_grace: how long streams may continue after SIGTERM, in seconds.
        detached_seconds: how long a call may continue without its client, in seconds.
        on_hang_up: what to do with a stream whose client leaves. ``stop`` closes the connection to
            the upstream. ``finish`` reads the stream to its end. None chooses one of these by
            provider.
        unbounded: what to do with calls whose cost has no bound. ``hold`` allows them, and each
            holds an amount. ``refuse`` refuses them.
        unbounded_hold: the amount that each such call holds, in nano-dollars.
        unknown_fields: what to do with unknown fields. ``refuse`` refuses the call. ``pass`` allows
            it as a call whose cost has no bound.

    Raises:
        WattfareError: ``invalid_request``; a setting is invalid.
    """

    database: str = DEFAULT_DATABASE
    upstream: str | None = None
    upstream_key: str | None = None
    user_ceiling: int | None = None
    app_ceiling: int | None = None
    total_ceiling: int | None = None
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    allow_unpriced: bool = False
    prices: Mapping[str, str] = {}
    aliases: Mapping[str, str] = {}
    media: Mapping[str, Mapping[str, int]] = {}
    provider: str | None = None
    metrics: bool = False
    grant_ceiling: int | None = None
    grant_default: int = DEFAULT_GRANT
    grant_max: int | None = None
    rate_limit_storage: str | None = None
    calls_per_minute_per_user: int = CALLS_PER_USER
    calls_per_minute_per_app: int = CALLS_PER_APP
    forwarded_allow_ips: str = FORWARDED_ALLOW_IPS
    max_calls_per_user: int = MAX_CALLS_PER_USER
    max_calls_per_app: int = MAX_CALLS_PER_APP
    funding: tuple[Funding, ...] | None = None
    encryption_keys: tuple[bytes, ...] | None = None
    secret: bytes | None = None
    max_answer_bytes: int = MAX_ANSWER_BYTES
    public_url: str | None = None
    stop_grace: float = STOP_GRACE_SECONDS
    detached_seconds: float = DETACHED_SECONDS
    on_hang_up: Literal["stop", "finish"] | None = None
    unbounded: Literal["hold", "refuse"] = "hold"
    unbounded_hold: int = UNBOUNDED_HOLD
    unknown_fields: Literal["refuse", "pass"] = "refuse"

    def __post_init__(self) -> None:
        self._hide_secrets()
        self._check_upstream_key()
        if self.public_url is not None:
            msgspec.structs.force_setattr(self, "public_url", public_url.check(self.public_url))
        if self.upstream is not None:
            try:
                parts = urlsplit(self.upstream)
                parts.port  # noqa: B018 - raises, if it is not a port
            except ValueError:
                parts = None
            if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
                raise invalid_request("The upstream must be a URL, such as https://host/api/v1.")
            if "@" in parts.netloc:
                raise invalid_request(
                    "Pass the upstream's key with --upstream-key, not in the URL."
                )
        elif self.upstream_key is not None:
            raise invalid_request("An upstream key needs an upstream: set --upstream, too.")
        OwnPrices(self.prices)  # an invalid one stops the service before it starts
        Families(self.media)
        for each in (*self.aliases, *self.aliases.values()):
            if not 0 < len(each) <= MAX_MODEL_CHARACTERS:
                raise invalid_request(
                    f"An alias and its model are names of 1 to {MAX_MODEL_CHARACTERS} characters."
                )
        if self.provider is not None:
            find_provider("", self.provider)
        if not 0 <= self.stop_grace <= MAX_STOP_GRACE_SECONDS:
            raise invalid_request(
                f"--stop-grace must be from 0 to {MAX_STOP_GRACE_SECONDS:,} seconds."
            )
        if not 0 <= self.detached_seconds <= MAX_DETACHED_SECONDS:
            raise invalid_request(
                "The time of a call without its client must be from 0 to"
                f" {MAX_DETACHED_SECONDS:,} seconds."
            )
        if self.on_hang_up not in (None, "stop", "finish"):
            raise invalid_request("--on-hang-up must be `stop` or `finish`.")
        self._check_unbounded()
        if not 1 <= self.default_max_tokens <= MAX_TOKENS:
            raise invalid_request(
                f"The default limit (--default-max-tokens) must be from 1 to {MAX_TOKENS:,} tokens."
            )
        if self.max_answer_bytes < 1:
            raise invalid_request("The maximum size of an answer must be at least 1 byte.")
        if min(self.max_calls_per_user, self.max_calls_per_app) < 1:
            raise invalid_request(
                "The limits of running calls per user and per app must be at least 1."
            )
        if min(self.calls_per_minute_per_user, self.calls_per_minute_per_app) < 1:
            raise invalid_request(
                "The limits of calls per minute, per user and per app, must be at least 1."
            )
        self._check_funding()
        if self.secret is not None:
            Signer(self.secret)  # a weak one stops the service before it starts

    def _check_funding(self) -> None:
        possible = self._possible_funding()
        for each in self.funding or ():
            if each not in FUNDING:
                raise invalid_request(
                    f"Funding {each!r:.100} is unknown. Use {', '.join(FUNDING)}."
                )
            if each not in possible:
                raise invalid_request(f"Funding `{each}` needs {_NEEDS[each]}.")
        if self.funding is not None and not self.funding and self.upstream is not None:
            raise invalid_request(
                "With an upstream, --funding must name at least one kind of funding."
            )

    def _possible_funding(self) -> tuple[Funding, ...]:
        if self.upstream is None:
            return ()
        possible: dict[Funding, bool] = {
            "operator": self.upstream_key is not None,
            "openrouter": find_provider(self.upstream, self.provider).has_oauth,
            "key": True,
        }
        return tuple(kind for kind, is_possible in possible.items() if is_possible)

    def _check_unbounded(self) -> None:
        if self.unbounded not in ("hold", "refuse"):
            raise invalid_request("--unbounded must be `hold` or `refuse`.")
        if self.unknown_fields not in ("refuse", "pass"):
            raise invalid_request("--unknown-fields must be `refuse` or `pass`.")
        if not 1 <= self.unbounded_hold <= MAX_RESERVATION:
            raise invalid_request(
                "--unbounded-hold-usd must be above 0 USD, and at most 1,000,000."
            )
        if (self.unbounded, self.unknown_fields) == ("refuse", "pass"):
            raise invalid_request(
                "The cost of unknown fields has no bound, so --unknown-fields pass needs"
                " --unbounded hold."
            )

    def _check_upstream_key(self) -> None:
        if self.upstream_key is None:
            return
        key = header_key(self.upstream_key)
        if key is None:
            raise invalid_request(
                "The upstream's key (--upstream-key or WATTFARE_UPSTREAM_KEY) cannot be sent: it is"
                " empty, or has a space, a line end or another character that is not visible ASCII."
            )
        msgspec.structs.force_setattr(self, "upstream_key", key)

    def _hide_secrets(self) -> None:
        for name in ("database", "upstream_key", "rate_limit_storage"):
            msgspec.structs.force_setattr(self, name, hidden(getattr(self, name)))
        if self.secret is not None:
            msgspec.structs.force_setattr(self, "secret", SecretBytes(self.secret))
        if self.encryption_keys is not None:
            hidden_keys = tuple(map(SecretBytes, self.encryption_keys))
            msgspec.structs.force_setattr(self, "encryption_keys", hidden_keys)

    @property
    def terms(self) -> Terms:
        """Who pays, and the operator's limits."""
        return Terms(
            operator_pays="operator" in self.offered,
            ceiling=self.user_ceiling,
            grant_ceiling=self.grant_ceiling,
            grant_default=self.grant_default,
            grant_max=self.grant_max,
            app_ceiling=self.app_ceiling,
            total_ceiling=self.total_ceiling,
        )

    @property
    def offered(self) -> tuple[Funding, ...]:
        """The kinds of funding that may pay for calls."""
        return self._possible_funding() if self.funding is None else self.funding

    @property
    def payer_funding(self) -> tuple[FundingKind, ...]:
        """The kinds of funding that payers may add."""
        return tuple(each for each in self.offered if each != "operator")

    @property
    def needs_funding(self) -> bool:
        """True if the operator has chosen that only payers pay the upstream."""
        return self.funding is not None and "operator" not in self.funding and bool(self.upstream)

    @property
    def fields(self) -> Policy:
        """The policy for fields whose cost has no bound."""
        return Policy(self.unbounded, self.unknown_fields)

    @property
    def held(self) -> int | None:
        """The amount that a call without a bound holds, in nano-dollars; None if such calls are
        refused."""
        return self.unbounded_hold if self.unbounded == "hold" else None

    def __repr__(self) -> str:
        return "Settings()"  # a URL may hold a password


def secret_from_environment() -> bytes | None:
    """The signing key in ``WATTFARE_SERVICE_SECRET``, or None if it is not set. Surrounding white
    space, such as the line end of a file, is not part of it."""
    value = os.environ.get(SECRET_VARIABLE)
    return None if value is None else SecretBytes(value.strip().encode())
