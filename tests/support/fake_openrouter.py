"""A fake OpenRouter on a real socket: people with credit, the page on which they give an app a key,
the exchange of the code, keys with limits, calls that cost money, and generation records.

It follows OpenRouter's documentation of "OAuth PKCE", ``POST /auth/keys``, ``POST /auth/keys/code``
and ``GET /key``.
"""

from __future__ import annotations

import hashlib
import html
import json
import secrets
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx

from support.http_client import http_client
from support.pages import Page
from support.upstream import Exchange, Upstream, completion_of, run_upstream

#: The cost of each call in USD, unless the fake has another.
COST = Decimal("0.000011")
SETTINGS = "https://openrouter.ai/settings"


@dataclass
class Key:
    """A key of a person."""

    key: str
    person: str
    label: str
    limit: Decimal | None = None
    limit_reset: str | None = None
    used: Decimal = Decimal(0)
    revoked: bool = False


@dataclass
class Code:
    """An authorization code. It works once."""

    person: str
    challenge: str | None
    method: str | None
    limit: Decimal | None
    limit_reset: str | None
    label: str


@dataclass
class FakeOpenRouter:
    """The fake.

    Attributes:
        credit: the credit of each person, in USD.
        keys: all keys, by the key itself.
        grants_limits: True if the page accepts the limit that the app requests.
        exchanges: the bodies of all requests to ``/auth/keys``.
        hang_after: the number of words after which a stream stops and stays open.
        cost: the cost of each call, in USD.
        streaming: released once for each stream that hangs.
    """

    upstream: Upstream
    credit: dict[str, Decimal] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)
    records: dict[str, tuple[str, Decimal]] = field(default_factory=dict)
    grants_limits: bool = True
    exchanges: list[dict[str, Any]] = field(default_factory=list)
    hang_after: int | None = None
    cost: Decimal = COST
    retry_after: int | None = None
    streaming: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def url(self) -> str:
        """The base URL, for ``--upstream``."""
        return self.upstream.url

    @property
    def options(self) -> tuple[str, ...]:
        """The options of a service that has this fake as its upstream."""
        return ("--upstream", self.url, "--provider", "openrouter")

    def reset(self) -> None:
        """Removes all people, keys and settings."""
        for kept in (self.credit, self.keys, self.codes, self.records, self.exchanges):
            kept.clear()
        self.upstream.reset()
        self.upstream.first = self.answer
        self.grants_limits, self.hang_after, self.cost, self.retry_after = True, None, COST, None

    def person(self, name: str, credit: str = "10") -> str:
        """A new person with this credit, in USD."""
        self.credit[name] = Decimal(credit)
        return name

    def new_key(self, person: str, **fields: Any) -> Key:
        """A key that a person has created on OpenRouter's own pages."""
        key = Key(f"sk-or-v1-{secrets.token_hex(32)}", person, fields.pop("label", "key"), **fields)
        self.keys[key.key] = key
        return key

    def keys_of(self, person: str) -> list[Key]:
        """The keys of a person, oldest first."""
        return [key for key in self.keys.values() if key.person == person]

    def allow(self, url: str, person: str, limit: str | None = None) -> str:
        """Opens the page that an app leads to, as this person, and allows the request.

        Args:
            limit: the limit that the person enters.

        Returns: the URL that the page redirects to.
        """
        with http_client() as http:
            form = Page(http.get(url)).form("Authorize")
            fields = {**form.fields, "person": person}
            if limit is not None:
                fields["limit"] = limit
            answer = http.post(str(httpx.URL(url).join(form.action)), data=fields)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    # -- its answers

    def answer(self, exchange: Exchange) -> bool:
        """Answers a request. Returns False if another part of the fake must answer it."""
        parts = urlsplit(exchange.path)
        query = dict(parse_qsl(parts.query))
        route = (exchange.method, parts.path.removeprefix("/api/v1"))
        if route == ("GET", "/auth"):
            self._page(exchange, query)
        elif route == ("POST", "/auth/allow"):
            self._allow(exchange)
        elif route == ("POST", "/auth/keys"):
            self._exchange(exchange)
        elif route == ("POST", "/auth/keys/code"):
            self._new_code(exchange)
        elif route == ("GET", "/key"):
            self._key(exchange)
        elif route == ("GET", "/generation"):
            self._record(exchange, query.get("id", ""))
        elif route == ("POST", "/chat/completions"):
            self._call(exchange)
        else:
            return False
        return True

    def _page(self, exchange: Exchange, query: dict[str, str]) -> None:
        callback = urlsplit(query.get("callback_url", ""))
        if callback.scheme != "https" and callback.hostname not in ("localhost", "127.0.0.1"):
            _refuse(exchange, 409, "The callback_url must be https, or localhost.")
            return
        if query.get("code_challenge_method") not in (None, "S256", "plain"):
            _refuse(exchange, 400, "Invalid code_challenge_method")
            return
        if not self.grants_limits:
            query = {
                name: value
                for name, value in query.items()
                if name not in ("limit", "usage_limit_type")
            }
        limit = query.pop("limit", "")
        fields = "".join(
            f'<input type="hidden" name="{name}" value="{html.escape(value)}">'
            for name, value in query.items()
        )
        exchange.answer(
            "<!doctype html><title>OpenRouter</title><link rel=icon href=data:,>"
            "<body><h1>Authorize the app</h1>"
            f'<form method="post" action="/auth/allow">{fields}<label>Limit '
            f'<input name="limit" value="{html.escape(limit)}"></label>'
            f'<input name="person" value="{next(iter(self.credit), "")}">'
            f"<button>Authorize</button></form></body>",
            content_type="text/html",
        )

    def _allow(self, exchange: Exchange) -> None:
        form = {name: values[0] for name, values in parse_qs(exchange.body.decode()).items()}
        code = self._code(form.get("person", ""), form)
        callback = form["callback_url"]
        joint = "&" if "?" in callback else "?"
        location = f"{callback}{joint}{urlencode({'code': code})}"
        exchange.answer("", status=302, headers={"location": location})

    def _code(self, person: str, asked: dict[str, Any]) -> str:
        code = secrets.token_urlsafe(24)
        limit = asked.get("limit")
        self.codes[code] = Code(
            person,
            asked.get("code_challenge"),
            asked.get("code_challenge_method"),
            Decimal(str(limit)) if limit else None,
            asked.get("usage_limit_type"),
            asked.get("key_label", "an app"),
        )
        return code

    def _exchange(self, exchange: Exchange) -> None:
        asked = exchange.json
        self.exchanges.append(asked)
        if asked.get("code_challenge_method") not in (None, "S256", "plain"):
            _refuse(exchange, 400, "Invalid code_challenge_method")
            return
        code = self.codes.pop(asked.get("code", ""), None)
        if code is None or not _fits(code, asked):
            _refuse(exchange, 403, "Invalid code or code_verifier")
            return
        key = self.new_key(
            code.person, label=code.label, limit=code.limit, limit_reset=code.limit_reset
        )
        exchange.answer({"key": key.key, "user_id": f"user_{code.person}"})

    def _new_code(self, exchange: Exchange) -> None:
        key = self._authorized(exchange)
        if key is not None:
            data = {"id": self._code(key.person, exchange.json), "app_id": 1}
            exchange.answer({"data": {**data, "created_at": "2026-01-01T00:00:00Z"}})

    def _key(self, exchange: Exchange) -> None:
        key = self._authorized(exchange)
        if key is None:
            return
        limit = None if key.limit is None else float(key.limit)
        left = None if key.limit is None else float(max(key.limit - key.used, Decimal(0)))
        exchange.answer(
            {
                "data": {
                    "label": f"{key.key[:12]}...{key.key[-3:]}",
                    "limit": limit,
                    "limit_remaining": left,
                    "limit_reset": key.limit_reset,
                    "usage": float(key.used),
                    "is_free_tier": False,
                }
            }
        )

    def _record(self, exchange: Exchange, name: str) -> None:
        key = self._authorized(exchange)
        if key is None:
            return
        self.upstream.questions.append(exchange)
        person, cost = self.records.get(name, ("", Decimal(0)))
        if person != key.person:
            _refuse(exchange, 404, "Generation not found")
            return
        exchange.answer({"data": {"id": name, "total_cost": float(cost), "is_byok": False}})

    def _call(self, exchange: Exchange) -> None:
        key = self._authorized(exchange)
        if key is None:
            return
        self.upstream.calls.append(exchange)
        later = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.credit[key.person] < self.cost:
            words = f"Insufficient credits. Add more using {SETTINGS}/credits"
            _refuse(exchange, 402, words, later)
            return
        if key.limit is not None and key.used + self.cost > key.limit:
            words = f"Key limit exceeded (total limit). Manage it using {SETTINGS}/keys"
            _refuse(exchange, 403, words, later)
            return
        self.credit[key.person] -= self.cost
        key.used += self.cost
        name = f"gen-{secrets.token_hex(8)}"
        self.records[name] = (key.person, self.cost)
        self._say(exchange, name)

    def _say(self, exchange: Exchange, name: str) -> None:
        usage = {
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "total_tokens": 8,
            "cost": float(self.cost),
        }
        if not exchange.json.get("stream"):
            exchange.answer({**completion_of("one two three", usage=usage), "id": name})
            return
        exchange.start_stream()
        for number, word in enumerate(("one ", "two ", "three")):
            if number == self.hang_after:
                self.streaming.release()
                exchange.hang()
            exchange.event(_chunk(name, [{"index": 0, "delta": {"content": word}}]))
        exchange.event({**_chunk(name, []), "usage": usage})
        exchange.done()

    def _authorized(self, exchange: Exchange) -> Key | None:
        given = exchange.headers.get("authorization", "").removeprefix("Bearer ")
        key = self.keys.get(given)
        if key is None or key.revoked:
            _refuse(exchange, 401, "User not found." if given else "No auth credentials found")
            return None
        return key


def _chunk(name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fake/model",
        "choices": choices,
    }


def _fits(code: Code, asked: dict[str, Any]) -> bool:
    if code.challenge is None:
        return True
    verifier = asked.get("code_verifier") or ""
    if asked.get("code_challenge_method") != code.method:
        return False
    if code.method == "S256":
        digest = hashlib.sha256(verifier.encode()).digest()
        return urlsafe_b64encode(digest).rstrip(b"=").decode() == code.challenge
    return verifier == code.challenge


def _refuse(
    exchange: Exchange, status: int, words: str, headers: dict[str, str] | None = None
) -> None:
    body = json.dumps({"error": {"message": words, "code": status}})
    exchange.answer(body, status=status, headers=headers)


@contextmanager
def run_openrouter() -> Iterator[FakeOpenRouter]:
    """Runs the fake on a free port. ``.url`` is its base URL."""
    with run_upstream() as upstream:
        router = FakeOpenRouter(upstream)
        upstream.first = router.answer
        yield router
