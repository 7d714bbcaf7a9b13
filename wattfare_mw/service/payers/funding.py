"""The funding of payers: checks, encrypts, finds and removes their keys for the upstream."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable
from datetime import datetime
from hashlib import sha256
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import Connection as Sql

from ...errors import WattfareError, WattfareFundingError, invalid_request
from ...logs import describe, get_logger
from ...transport import Secret, header_key, hidden
from ..ledger import fundings
from ..ledger.clock import seconds, utc_now
from ..ledger.fundings import MAX_FUNDING, Funding, FundingKind, FundingRequest, StoredKey
from ..ledger.store import Store
from ..models.credential import Credential
from ..models.upstream import Upstream
from . import openrouter
from .encryption import Keyring, Sealed, UnreadableError

#: The maximum number of keys in memory, and how long each stays there, in seconds.
MAX_CACHED = 1000
CACHED_SECONDS = 60.0
#: The maximum length of a label, in characters.
MAX_LABEL = 60
#: How many keys are re-encrypted in one transaction.
_AT_A_TIME = 100

log = get_logger("wattfare_mw.service", show_messages=False)

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


class Started(msgspec.Struct, frozen=True):
    """A redirect of a payer to OpenRouter.

    Attributes:
        url: the target of the redirect.
        cookie: the cookie that the browser must have when it returns.
    """

    url: str
    cookie: str

    def __repr__(self) -> str:
        return "Started()"


class Added(msgspec.Struct, frozen=True):
    """A funding that has been added.

    Attributes:
        asked_limit: the requested limit, in nano-dollars; None for no limit.
        return_to: our page to show next.
    """

    funding: Funding
    asked_limit: int | None = None
    return_to: str = "/funding"

    @property
    def lacks_limit(self) -> bool:
        """True if the key may spend more than the requested limit."""
        limit = self.funding.limit
        return self.asked_limit is not None and (limit is None or limit > self.asked_limit)


class PayerFunding:
    """The funding of all payers. It finds the key that pays for a call.

    Args:
        keyring: the encryption keys; if None, payers cannot add keys, and stored keys are not read.
        upstream: the upstream of the keys; None for the built-in model, which needs none.
        offers: the kinds of funding that the operator lets payers add.
        operator_pays: True if a payer can choose that the service pays.
        public_url: the origin of the service's pages.
    """

    def __init__(
        self,
        store: Store,
        keyring: Keyring | None,
        upstream: Upstream | None,
        offers: Collection[FundingKind],
        public_url: str,
        *,
        operator_pays: bool = False,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._upstream = upstream
        self._public_url = public_url
        self._cache = _KeyCache()
        self.offers = frozenset(offers if keyring is not None else ())
        self.operator_pays = operator_pays

    def __repr__(self) -> str:
        return "PayerFunding()"

    @property
    def needed(self) -> bool:
        """True if a payer must choose a funding."""
        return bool(self.offers)

    @property
    def upstream_host(self) -> str:
        """The host for which the keys are valid, as the pages show it."""
        return "" if self._upstream is None else urlsplit(self._upstream.base_url).hostname or ""

    @property
    def openrouter_origin(self) -> str | None:
        """The origin of OpenRouter's page; None if OpenRouter is not offered."""
        if "openrouter" not in self.offers or self._upstream is None:
            return None
        return openrouter.auth_origin(self._upstream.base_url)

    # -- what a payer sees and does

    async def of_payer(self, payer_id: str) -> list[Funding]:
        """This payer's funding, oldest first. Some of it may be invalid."""
        return await self._store.transact(lambda sql: fundings.of_payer(sql, payer_id))

    async def find(self, payer_id: str, funding_id: str) -> Funding:
        """The payer's funding with this id.

        Raises:
            WattfareError: ``invalid_request``, 404; the payer has no such funding.
        """
        found = await self._store.transact(lambda sql: fundings.find(sql, payer_id, funding_id))
        if found is None:
            raise _no_such_funding()
        return found

    async def chosen(self, payer_id: str, choice: str) -> str | None:
        """The id of the funding that a payer has chosen in a form; None if the service pays.

        Args:
            choice: ``operator``, or an id; empty if the form had nothing to choose.

        Raises:
            WattfareError: ``invalid_request`` if the payer has no such valid funding.
        """
        if not self.needed and choice in ("", "operator"):
            return None
        if choice == "operator" and self.operator_pays:
            return None
        if not choice or choice == "operator":
            raise invalid_request("Choose what pays.")
        found = await self.find(payer_id, choice)
        if found.state != "valid":
            raise invalid_request("The provider refuses this key. Choose another way to pay.")
        return found.id

    async def add_key(
        self, payer_id: str, key: str, label: str = "", *, replaces: str | None = None
    ) -> Added:
        """Check a payer's own key with the upstream, and store it.

        Args:
            label: a name that the payer sees. Without one, the new key gets the name of the key
                that it replaces, or a default.
            replaces: the id of a funding of this payer. The new key pays in its place, and the old
                one is deleted.

        Raises:
            WattfareError: ``invalid_request``; the key, the label or the funding is invalid.
                ``upstream``; the upstream cannot check the key.
        """
        upstream, _ = self._needs("key")
        key = hidden(key)
        usable = header_key(key[: openrouter.MAX_KEY + 1])
        if usable is None or len(usable) > openrouter.MAX_KEY:
            raise invalid_request(
                "This is not a key: it is empty or too long, or has a space or another character "
                "that is not visible ASCII."
            )
        label = _label(label)
        if replaces is not None:
            replaced = await self.find(payer_id, replaces)
            label = label or replaced.label
        label = label or f"Key for {self.upstream_host}"[:MAX_LABEL]
        try:
            facts = await upstream.check_key(usable)
        except WattfareFundingError:
            raise invalid_request(
                f"{self.upstream_host} refuses this key. Check that you have "
                "copied all of it, and that it has not been revoked."
            ) from None
        funding = self._new(payer_id, "key", label, openrouter.limit_of(facts))
        await self._keep(funding, usable, [] if replaces is None else [replaces])
        return Added(funding)

    async def remove(self, payer_id: str, funding_id: str) -> None:
        """Delete the key of this funding and end everything that it pays for.

        Raises:
            WattfareError: ``invalid_request``, 404; the payer has no such funding.
        """
        removed = await self._store.remove_funding(payer_id, funding_id)
        self._cache.drop(funding_id)
        if not removed:
            raise _no_such_funding()

    def forget(self, funding_ids: Iterable[str]) -> None:
        """Drop these keys from memory: they were deleted in the database."""
        for each in funding_ids:
            self._cache.drop(each)

    # -- OpenRouter

    async def start_openrouter(
        self, payer_id: str, limit: int | None, return_to: str, cookie: str | None
    ) -> Started:
        """Send a payer to OpenRouter.

        Args:
            limit: what the key may spend in a month, in nano-dollars; None for no limit.
            return_to: our page to show afterwards.
            cookie: the cookie that an earlier redirect to OpenRouter set in this browser, or None.
                It is used again, so that the earlier redirect can still be completed.
        """
        upstream, keyring = self._needs("openrouter")
        if cookie is None or not _TOKEN.fullmatch(cookie):
            cookie = secrets.token_urlsafe(32)
        state = secrets.token_urlsafe(32)
        verifier = openrouter.new_verifier()
        state_hash, cookie_hash = _hash(state), _hash(cookie)
        sealed = keyring.seal(verifier, _for_verifier(state_hash))

        def add(sql: Sql, now: datetime) -> None:
            request = FundingRequest(
                state_hash=state_hash,
                payer_id=payer_id,
                cookie_hash=cookie_hash,
                verifier=f"{sealed.key_id}:".encode() + sealed.ciphertext,
                limit=limit,
                return_to=return_to,
                expires_at=seconds(now) + openrouter.REQUEST_SECONDS,
            )
            fundings.add_request(sql, request, seconds(now))

        await self._store.at(add)
        url = openrouter.auth_url(
            upstream.base_url, self._public_url, state=state, verifier=verifier, limit=limit
        )
        return Started(url, cookie)

    async def finish_openrouter(
        self, payer_id: str, state: str, code: str, cookie: str | None
    ) -> Added:
        """Exchange the code from OpenRouter's callback for a key, and store the key.

        Args:
            state: from the callback's URL.
            code: from the callback's URL.
            cookie: the browser's cookie.

        Raises:
            WattfareError: ``invalid_request`` if this payer was not redirected from this browser in
                the last ten minutes, or if the state was already used. ``upstream`` if OpenRouter
                fails.
        """
        upstream, keyring = self._needs("openrouter")
        state_hash = _hash(state)
        # This comes first, in its own transaction, so that the state can be used only once.
        request, now = await self._store.at(
            lambda sql, now: (fundings.take_request(sql, state_hash), seconds(now))
        )
        if (
            request is None
            or request.expires_at <= now
            or request.payer_id != payer_id
            or not hmac.compare_digest(request.cookie_hash, _hash(cookie or ""))
        ):
            raise invalid_request(
                "This answer from OpenRouter does not belong to a request from this browser in "
                "the last ten minutes, or it was already used. Nothing was connected. Connect "
                "OpenRouter again.",
                403,
            )
        key_id, _, ciphertext = request.verifier.partition(b":")
        try:
            sealed = Sealed(ciphertext, key_id.decode("ascii", "replace"))
            verifier = keyring.open(sealed, _for_verifier(state_hash))
        except UnreadableError:
            raise invalid_request(
                "This request cannot be read. Connect OpenRouter again."
            ) from None
        key = await openrouter.exchange(upstream.http, code, verifier)
        facts: bytes | None = None
        try:
            facts = await upstream.check_key(key)
        except WattfareError as error:
            # The exchange succeeded, so keep the key. Only its limit is unknown.
            log.warning("OpenRouter did not report the limit of a new key: %s", describe(error))
        limit = openrouter.limit_of(facts)
        funding = self._new(payer_id, "openrouter", "OpenRouter", limit)
        refused = await self._store.transact(
            lambda sql: fundings.invalid_of(sql, payer_id, "openrouter", upstream.base_url)
        )
        await self._keep(funding, key, refused)
        return Added(funding, request.limit, request.return_to)

    # -- the keys of calls

    async def credential(self, funding_id: str, *, fresh: bool = False) -> Credential:
        """The key that pays with this funding.

        Args:
            fresh: read the database even if the key is in memory.

        Raises:
            WattfareFundingError: the funding has been removed or refused, or cannot be read.
            WattfareError: 503 if the database is unavailable.
        """
        found = None if fresh else self._cache.get(funding_id)
        if found is None:
            found = await self._read(funding_id)
            if not fresh:
                self._cache.put(funding_id, found)
        return found

    async def refused(self, funding_id: str) -> None:
        """Record that the upstream refused this key. It is not used until it is connected again."""
        self._cache.drop(funding_id)
        if await self._store.transact(
            lambda sql: fundings.mark_invalid(sql, funding_id, utc_now())
        ):
            log.warning("the upstream refuses a payer's key: funding=%s", funding_id)

    async def reencrypt(self) -> None:
        """Encrypt all stored keys with the first encryption key. The other encryption keys can then
        be removed."""
        keyring = self._keyring
        if keyring is None:
            return
        after, unreadable, done = "", 0, 0
        while True:
            others = await self._store.transact(
                lambda sql, after=after: fundings.encrypted_by_others(
                    sql, keyring.first_id, after, _AT_A_TIME
                )
            )
            if not others:
                break
            after = others[-1].id
            pairs: list[tuple[StoredKey, StoredKey]] = []
            for old in others:
                purpose = _for_key(old.id, old.upstream)
                try:
                    key = keyring.open(Sealed(old.ciphertext, old.encryption_key_id), purpose)
                except UnreadableError:
                    unreadable += 1
                    continue
                pairs.append((old, _stored(old.id, old.upstream, keyring.seal(key, purpose))))
            await self._store.transact(
                lambda sql, pairs=pairs: [fundings.reencrypt(sql, *pair) for pair in pairs]
            )
            done += len(pairs)
        if done:
            log.info("re-encrypted %d stored keys with the first encryption key", done)
        if unreadable:
            log.error(
                "%d stored keys cannot be decrypted: WATTFARE_ENCRYPTION_KEY lacks the key that "
                "encrypted them. Calls that they pay for are refused",
                unreadable,
            )

    async def _read(self, funding_id: str) -> Credential:
        stored = await self._store.transact(lambda sql: fundings.stored_key(sql, funding_id))
        if stored is None:
            raise _funding_removed()
        if self._upstream is None or stored.upstream != self._upstream.base_url:
            raise WattfareFundingError(
                "The key that pays is for another provider than the one this service uses now. "
                "Connect the funding again."
            )
        try:
            if self._keyring is None:
                raise UnreadableError
            key = self._keyring.open(
                Sealed(stored.ciphertext, stored.encryption_key_id),
                _for_key(funding_id, stored.upstream),
            )
        except UnreadableError:
            log.error(
                "a stored key cannot be decrypted: WATTFARE_ENCRYPTION_KEY lacks its encryption "
                "key, or the row was changed: funding=%s",
                funding_id,
            )
            raise WattfareFundingError(
                "The service cannot read the key that pays. Connect the funding again."
            ) from None
        return Credential(Secret(key.decode("ascii")), funding_id)

    def _needs(self, kind: FundingKind) -> tuple[Upstream, Keyring]:
        if kind not in self.offers or self._upstream is None or self._keyring is None:
            raise invalid_request("This service does not offer this way to pay.", 404)
        return self._upstream, self._keyring

    def _new(self, payer_id: str, kind: FundingKind, label: str, limit: int | None) -> Funding:
        upstream, _ = self._needs(kind)
        return Funding(
            id=secrets.token_hex(16),
            payer_id=payer_id,
            kind=kind,
            upstream=upstream.base_url,
            label=label,
            state="valid",
            limit=limit,
            created_at=seconds(utc_now()),
        )

    async def _keep(self, funding: Funding, key: Secret, replaces: list[str]) -> None:
        _, keyring = self._needs(funding.kind)
        purpose = _for_key(funding.id, funding.upstream)
        stored = _stored(funding.id, funding.upstream, keyring.seal(key.encode("ascii"), purpose))
        kept = await self._store.transact(lambda sql: fundings.add(sql, funding, stored, replaces))
        for each in replaces:
            self._cache.drop(each)
        if not kept:
            raise invalid_request(
                f"You have {MAX_FUNDING} ways to pay already. Remove one of them first."
            )


class _KeyCache:
    """The keys of recent calls. A key expires after a minute, or when it is removed here."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, Credential]] = OrderedDict()

    def get(self, funding_id: str) -> Credential | None:
        until, found = self._kept.get(funding_id, (0.0, None))
        if time.monotonic() < until:
            return found
        self._kept.pop(funding_id, None)
        return None

    def put(self, funding_id: str, credential: Credential) -> None:
        now = time.monotonic()
        self._kept[funding_id] = (now + CACHED_SECONDS, credential)
        self._kept.move_to_end(funding_id)
        # The oldest are first.
        while self._kept:
            until, _ = next(iter(self._kept.values()))
            if until > now and len(self._kept) <= MAX_CACHED:
                break
            self._kept.popitem(last=False)

    def drop(self, funding_id: str) -> None:
        self._kept.pop(funding_id, None)


def _stored(funding_id: str, upstream: str, sealed: Sealed) -> StoredKey:
    return StoredKey(funding_id, upstream, sealed.ciphertext, sealed.key_id)


def _for_key(funding_id: str, upstream: str) -> str:
    """The purpose of a key's ciphertext: this funding at this upstream."""
    return f"funding:{funding_id} {upstream}"


def _for_verifier(state_hash: str) -> str:
    return f"verifier:{state_hash}"


def _hash(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _label(text: str) -> str:
    label = " ".join(text.split())
    if len(label) > MAX_LABEL or not label.isprintable():
        raise invalid_request(f"A name must be one line of up to {MAX_LABEL} characters.")
    return label


def _funding_removed() -> WattfareError:
    return WattfareFundingError("The funding of this connection was removed. Connect it again.")


def _no_such_funding() -> WattfareError:
    return invalid_request("This way to pay no longer exists.", 404)
