"""How the service translates an upstream's refusal of a payer's own key or account."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wattfare_mw.errors import (
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareRateLimitError,
)
from wattfare_mw.service.models import upstream_errors
from wattfare_mw.service.models.credential import Credential
from wattfare_mw.service.models.upstream_errors import AccountRefusedError, KeyRefusedError

KEY = "sk-or-v1-0123456789abcdef0123456789abcdef"
PAYER = Credential(KEY, "funding1")
OPERATOR = Credential(KEY)

NO_CREDIT = "Insufficient credits. Add more using https://openrouter.ai/settings/credits"
LIMIT_OF_KEY = (
    "Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys"
)
AFFORD = (
    "This request requires more credits, or fewer max_tokens. You requested up to 32000 tokens, "
    "but can only afford 0. To increase, visit https://openrouter.ai/settings/{} and {}"
)


def openrouter(status: int, message: str, **metadata: Any) -> bytes:
    error: dict[str, Any] = {"message": message, "code": status}
    if metadata:
        error["metadata"] = metadata
    return json.dumps({"error": error}).encode()


def openai(message: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": code, "code": code}}).encode()


REFUSED_KEYS = [
    (401, openrouter(401, "User not found.")),
    (401, openrouter(401, "No auth credentials found")),
    (401, openai(f"Incorrect API key provided: {KEY}. See https://x/keys", "invalid_api_key")),
    (401, b"Unauthorized"),
    (400, openai("API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT")),
    (403, openai("bad key", "invalid_api_key")),
]


@pytest.mark.parametrize(("status", "body"), REFUSED_KEYS)
def test_refused_key_is_invalid_funding(status: int, body: bytes) -> None:
    error = upstream_errors.failure(status, body, {}, PAYER)
    assert type(error) is KeyRefusedError
    assert isinstance(error, WattfareFundingError)
    assert (error.code, error.status) == ("funding_invalid", 402)
    assert KEY not in f"{error.to_wire()} {error!r} {error.log_message}"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (402, openrouter(402, NO_CREDIT), "Add credit"),
        (402, openrouter(402, AFFORD.format("credits", "add more credits")), "Add credit"),
        (402, b"", "Add credit"),
        (429, openai("You exceeded your current quota", "insufficient_quota"), "Add credit"),
        (400, openai("Your credit balance is too low", "invalid_request_error"), "Add credit"),
        (403, openrouter(403, LIMIT_OF_KEY), "Raise the limit of this key"),
        (
            402,
            openrouter(402, AFFORD.format("keys", "create a key with a higher monthly limit")),
            "Raise the limit of this key",
        ),
    ],
)
def test_empty_account_error_says_what_to_do(status: int, body: bytes, words: str) -> None:
    error = upstream_errors.failure(status, body, {}, PAYER)
    assert type(error) is WattfareBudgetExceededError
    assert error.status == 402
    assert words in error.message
    assert error.limited_by == "funding"


@pytest.mark.parametrize("status", [402, 429])
@pytest.mark.parametrize("message", [NO_CREDIT, LIMIT_OF_KEY])
def test_temporary_lack_of_money_is_a_rate_limit(status: int, message: str) -> None:
    error = upstream_errors.failure(status, openrouter(402, message), {"retry-after": "7"}, PAYER)
    assert type(error) is WattfareRateLimitError
    assert (error.status, error.retry_after) == (429, 7)


def test_rate_limit_stays_a_rate_limit() -> None:
    body = openrouter(429, "Rate limit exceeded")
    error = upstream_errors.failure(429, body, {"retry-after": "3"}, PAYER)
    assert type(error) is WattfareRateLimitError
    assert error.retry_after == 3


@pytest.mark.parametrize(
    ("status", "body"),
    [
        # It is about the account's rights, not the key.
        (403, openai("You do not have access to this project", "permission_denied")),
        (403, openrouter(403, "This region is not supported")),
        # It is about the provider behind OpenRouter.
        (401, openrouter(401, "Provider returned error", provider_name="X", raw="bad key")),
    ],
)
def test_other_refusals_do_not_invalidate_the_funding(status: int, body: bytes) -> None:
    """Otherwise, an app could name a model that the key may not use and stop the payer's other
    apps."""
    error = upstream_errors.failure(status, body, {}, PAYER)
    assert (error.code, error.status) == ("upstream", 502)
    assert type(error) is WattfareError


def test_moderation_error_is_about_the_prompt() -> None:
    body = openrouter(403, "flagged", reasons=["violence"], flagged_input="x")
    assert upstream_errors.failure(403, body, {}, PAYER).code == "invalid_request"


@pytest.mark.parametrize(
    ("status", "body"), [*REFUSED_KEYS, (402, openrouter(402, NO_CREDIT)), (403, b"")]
)
def test_refusal_of_the_operators_key_is_not_shown_to_users(
    status: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    error = upstream_errors.failure(status, body, {}, OPERATOR)
    assert type(error) is AccountRefusedError
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize(("status", "body"), REFUSED_KEYS)
def test_payers_key_error_is_not_logged_as_the_operators(
    status: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    upstream_errors.failure(status, body, {}, PAYER)
    assert not caplog.records
