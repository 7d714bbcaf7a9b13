"""Gets a payer's key from OpenRouter by OAuth with PKCE. It does not use the database.

The steps follow "OAuth PKCE" in OpenRouter's documentation:

1. The browser goes to ``/auth`` with ``callback_url``, ``code_challenge`` and
   ``code_challenge_method=S256``. ``limit``, ``usage_limit_type`` and ``key_label`` are documented
   for ``POST /auth/keys/code``, which creates a code with the person's own key. Here, OpenRouter's
   page creates the code. So the service sends these parameters to the page, and checks afterwards
   which limit the key has.
2. OpenRouter sends the browser to the callback, with a ``code``.
3. ``POST /auth/keys`` gives the key for ``code`` and ``code_verifier``.
4. ``GET /key`` returns the actual limit of the key.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from decimal import Decimal
from hashlib import sha256
from urllib.parse import urlencode, urlsplit

import msgspec

from ... import money
from ...errors import WattfareError, invalid_request
from ...transport import Secret, header_key
from ..models.credential import Credential
from ..models.upstream_http import Refusal, UpstreamHTTP

#: How long a payer may take at OpenRouter, in seconds.
REQUEST_SECONDS = 600
#: The path to which OpenRouter returns the browser.
CALLBACK_PATH = "/funding/openrouter/callback"
#: The maximum length of a key's label, in characters.
MAX_LABEL = 100
#: The maximum length of a key, in characters.
MAX_KEY = 1000
_MAX_ANSWER_BYTES = 100_000
_CODE = re.compile(r"[\x21-\x7e]{1,1000}")


class _Exchanged(msgspec.Struct):
    key: str


class _KeyFacts(msgspec.Struct):
    limit: float | None = None


class _KeyAnswer(msgspec.Struct):
    data: _KeyFacts


def new_verifier() -> bytes:
    """A code verifier of 256 random bits. It stays on the server."""
    return secrets.token_urlsafe(32).encode()


def auth_origin(base_url: str) -> str:
    """The origin of OpenRouter's page, for this base URL of its API."""
    parts = urlsplit(base_url)
    if (parts.hostname or "").endswith(".openrouter.ai"):
        return "https://openrouter.ai"
    return f"{parts.scheme}://{parts.netloc}"


def auth_url(
    base_url: str, public_url: str, *, state: str, verifier: bytes, limit: int | None
) -> str:
    """The URL of the page on which a person creates a key for this service.

    Args:
        base_url: of OpenRouter's API.
        public_url: of this service. The callback uses it, never the ``Host`` header.
        state: OpenRouter returns it in the callback's URL.
        limit: what the key may spend in a month, in nano-dollars; None for no limit.
    """
    challenge = urlsafe_b64encode(sha256(verifier).digest()).rstrip(b"=").decode()
    query = {
        "callback_url": f"{public_url}{CALLBACK_PATH}?{urlencode({'state': state})}",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "key_label": f"Wattfare at {urlsplit(public_url).netloc}"[:MAX_LABEL],
    }
    if limit is not None:
        query |= {"limit": f"{money.usd(limit):f}", "usage_limit_type": "monthly"}
    return f"{auth_origin(base_url)}/auth?{urlencode(query)}"


async def exchange(http: UpstreamHTTP, code: str, verifier: bytes) -> Secret:
    """Exchange a code for a key.

    Raises:
        WattfareError: ``invalid_request`` if OpenRouter refuses the code. ``upstream`` if it fails.
    """
    if not _CODE.fullmatch(code):
        raise _refused()
    body = msgspec.json.encode(
        {
            "code": code,
            "code_verifier": verifier.decode("ascii"),
            "code_challenge_method": "S256",
        }
    )
    no_key = Credential(None, "")
    answer = await http.ask("POST", "/auth/keys", _MAX_ANSWER_BYTES, body, no_key)
    if isinstance(answer, Refusal):
        if answer.status >= 500 or answer.status == 429:
            raise answer.error
        raise _refused()
    try:
        found = msgspec.json.decode(answer, type=_Exchanged)
        key = header_key(found.key) if len(found.key) <= MAX_KEY else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        key = None
    if key is None:
        raise WattfareError("OpenRouter did not answer with a key.", code="upstream", status=502)
    return key


def limit_of(answer: bytes | None) -> int | None:
    """The limit of a key from ``GET /key``, in nano-dollars; None if it has none."""
    if answer is None:
        return None
    try:
        limit = msgspec.json.decode(answer, type=_KeyAnswer).data.limit
        if limit is None:
            return None
        return money.cap_nanos(min(Decimal(str(limit)), Decimal(money.MAX_CAP_USD)))
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, WattfareError):
        return None


def _refused() -> WattfareError:
    return invalid_request(
        "OpenRouter did not accept the authorization code. Connect OpenRouter again."
    )
