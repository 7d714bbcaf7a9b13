"""The errors for an upstream's failures: what a status and a body mean for the client. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...errors import (
    Shortfall,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareNetworkError,
    WattfareRateLimitError,
    invalid_request,
    retry_after_in,
)
from ...logs import get_logger
from ...types import Json
from ..errors import upstream_failed
from . import error_shapes
from .credential import Credential
from .upstream_json import decode

log = get_logger("wattfare_mw.service", show_messages=False)

#: The value of ``limitedBy`` if the payer's own key or account has no money left.
FUNDING = "funding"
#: How many characters of the upstream's own message are passed on.
MAX_MESSAGE = 500


def unreachable(error: WattfareNetworkError) -> WattfareError:
    """The error if the provider could not be reached, or the connection broke. It does not show the
    provider's address to users."""
    if error.sent:
        return upstream_failed("The connection to the upstream broke.")
    return upstream_failed("The upstream could not be reached.")


class AccountRefusedError(WattfareError):
    """The upstream refuses the operator's own account: its key, its credit or its rights. Users see
    that the provider failed, because connecting again would not help."""

    default_code = "upstream"
    default_status = 502


class KeyRefusedError(WattfareFundingError):
    """The upstream refuses a payer's own key."""


def failure(
    status: int, body: bytes, headers: Mapping[str, str], credential: Credential
) -> WattfareError:
    """The error for an answer other than 200.

    Args:
        credential: the key of the call. It is removed from the upstream's message.
    """
    parsed = _parsed(body)
    retry_after = retry_after_in(headers)
    if retry_after is None:
        retry_after = parsed.retry_after
    return _failure(status, parsed, retry_after, credential)


def _parsed(body: bytes) -> error_shapes.ParsedError:
    try:
        return error_shapes.in_error(decode(body))
    except (ValueError, WattfareError):
        return error_shapes.in_text(body)


def means_no_list(status: int, failure: WattfareError) -> bool:
    """True if this failure means that the upstream has no list of models, or none for this key. Any
    other failure may be temporary."""
    about_account = isinstance(failure, AccountRefusedError)
    return about_account or status == 501 or (400 <= status < 500 and status not in (408, 429))


def _failure(
    status: int, parsed: error_shapes.ParsedError, retry_after: float | None, credential: Credential
) -> WattfareError:
    if _is_about_account(status, parsed):
        # The message is about the account that pays, and may repeat the credential.
        if credential.is_payers:
            return _payer_refused(status, parsed, retry_after)
        return _account_refused(status, parsed)
    if status == 429:
        ours = "The upstream's rate limit is reached."
        failure = WattfareRateLimitError(ours, retry_after=retry_after or 1)
    elif status == 403 and (parsed.flagged or _is_moderation(parsed)):
        failure = invalid_request("The upstream's moderation refuses the prompt.", 403)
    elif 400 <= status < 500 and status not in _LATER:
        failure = invalid_request(f"The upstream refused the request ({status}).")
    else:
        failure = upstream_failed(f"The upstream failed ({status}).")
        failure.retry_after = retry_after
    return _quoting(parsed, credential, failure)


def _quoting(
    parsed: error_shapes.ParsedError, credential: Credential, failure: WattfareError
) -> WattfareError:
    """The error with the upstream's own message and code, if there are any. The log gets only our
    own message."""
    redact = credential.redactor.text
    if parsed.message is not None and (words := redact(parsed.message)[:MAX_MESSAGE]):
        failure.quote(words)
    if parsed.code is not None and redact(parsed.code) == parsed.code:
        failure.upstream_code = parsed.code
    return failure


def error_of(answer: Json, credential: Credential) -> WattfareError | None:
    """The error in an answer or a chunk with status 200, or None."""
    parsed = error_shapes.in_success(answer)
    return None if parsed is None else _error_of(parsed, credential)


def error_without_choices(answer: object, credential: Credential) -> WattfareError | None:
    """The error in an answer with status 200 that has no choices, or None if it has no message."""
    parsed = error_shapes.in_error(answer)
    return None if parsed.message is None else _error_of(parsed, credential)


def error_event(data: bytes, credential: Credential) -> WattfareError:
    """The error in an event of type ``error``, which may have any data."""
    return _error_of(_parsed(data), credential)


def error_without_data(block: bytes, credential: Credential) -> WattfareError | None:
    """The error in a part of a stream that has no ``data:``, or None. llama.cpp has sent errors in
    a field of their own (ggml-org/llama.cpp#16109). Other servers send the JSON alone."""
    field = _ERROR_FIELD.search(block)
    if field is not None:
        return error_event(field[1], credential)
    if not block.lstrip().startswith((b"{", b"[")):
        return None
    try:
        return error_of(decode(block), credential)
    except ValueError:
        return None


_ERROR_FIELD = re.compile(rb"^error: ?(\{[^\r\n]*)", re.MULTILINE)


def _error_of(parsed: error_shapes.ParsedError, credential: Credential) -> WattfareError:
    return _failure(_status_of(parsed), parsed, parsed.retry_after, credential)


def _status_of(parsed: error_shapes.ParsedError) -> int:
    """The status that fits an error."""
    if parsed.status is not None:
        return parsed.status
    named = (_STATUS_BY_NAME[name] for name in parsed.names if name in _STATUS_BY_NAME)
    return next(named, 502)


def _is_about_account(status: int, parsed: error_shapes.ParsedError) -> bool:
    if _is_about_prompt(parsed):
        return False
    if {status, parsed.status} & _ACCOUNT_STATUSES or parsed.names & _ACCOUNT_ERRORS:
        return True
    return _has_words(parsed, _MONEY_WORDS) or _has_words(parsed, _KEY_WORDS)


def _is_about_prompt(parsed: error_shapes.ParsedError) -> bool:
    return parsed.flagged or bool(parsed.names & _PROMPT_ERRORS) or _is_moderation(parsed)


def _is_moderation(parsed: error_shapes.ParsedError) -> bool:
    """True if the words mean that the provider's moderation refuses the prompt. xAI sends them with
    a 403 and the code for missing permissions: UKGovernmentBEIS/inspect_ai#2267."""
    return "moderation_error" in parsed.names or _has_words(parsed, _MODERATION_WORDS)


def _has_words(parsed: error_shapes.ParsedError, words: re.Pattern[str]) -> bool:
    return parsed.message is not None and words.search(parsed.message[:MAX_MESSAGE]) is not None


def _account_refused(status: int, parsed: error_shapes.ParsedError) -> AccountRefusedError:
    """The error, and a log line that tells the operator what to do. The line has only known names
    of errors, and no other text of the upstream."""
    status = parsed.status or status
    known = sorted(parsed.names & _ACCOUNT_ERRORS)
    if _is_about_money(status, parsed):
        advice = "Its credit or quota is used up: add credit, or raise the limit of the account."
    elif status == 401 or known or _has_words(parsed, _KEY_WORDS):
        advice = "Check the operator's key: --upstream-key, or WATTFARE_UPSTREAM_KEY."
    else:
        advice = "Check what the operator's key and account are allowed to do."
    log.error(
        "The upstream refuses the operator's account (%s). %s",
        ", ".join([str(status), *known]),
        advice,
    )
    return AccountRefusedError(
        "The model's provider refuses the account of this service. Only its operator can help."
    )


def _payer_refused(
    status: int, parsed: error_shapes.ParsedError, retry_after: float | None
) -> WattfareError:
    """The error for a payer's own key or account. The message says what the payer can do."""
    status = parsed.status or status
    account_names = parsed.names & _ACCOUNT_ERRORS
    is_key_limit = status != 401 and _has_words(parsed, _KEY_LIMIT_WORDS)
    if is_key_limit or _is_about_money(status, parsed):
        if retry_after is not None and status in (402, 429):
            return WattfareRateLimitError(
                "The model's provider accepts no more calls from this account for now.",
                retry_after=retry_after,
            )
        message = (
            "The key that pays has reached its own limit at the model's provider. Raise the limit "
            "of this key there, or pay with another key."
            if is_key_limit
            else "The account that pays has no credit left at the model's provider. Add credit "
            "there, or pay with another key."
        )
        return WattfareBudgetExceededError(message, shortfall=Shortfall(limited_by=FUNDING))
    # The error of a provider behind OpenRouter is not about OpenRouter's key.
    is_about_key = status == 401 or account_names & _KEY_REFUSALS or _has_words(parsed, _KEY_WORDS)
    if is_about_key and not parsed.quoted:
        return KeyRefusedError(
            "The model's provider refuses the key that pays. Connect the funding again."
        )
    return upstream_failed(
        "The model's provider does not let the account that pays make this call."
    )


def _is_about_money(status: int, parsed: error_shapes.ParsedError) -> bool:
    known = parsed.names & _ACCOUNT_ERRORS
    return status == 402 or not known <= _KEY_ERRORS or _has_words(parsed, _MONEY_WORDS)


#: Statuses of a request that can be sent again: a timeout, a failed dependency (Bedrock sends it if
#: the model fails), "Too Early", Groq's flex tier without capacity, a closed request.
_LATER = (408, 424, 425, 498, 499)
#: Statuses about the account that pays: its key, its credit, its rights.
_ACCOUNT_STATUSES = frozenset({401, 402, 403})
#: The names of errors about a key or its rights, as OpenAI, Anthropic and Google give them. They
#: come with other statuses, too.
_KEY_ERRORS = frozenset(
    {
        "account_deactivated",
        "api_key_invalid",
        "authentication_error",
        "incorrect_api_key",
        "invalid_api_key",
        "invalid_authentication_error",
        "permission_denied",
        "permission_error",
        "unauthenticated",
        "unauthorized",
    }
)
#: The names that mean an invalid key. The others are about its rights.
_KEY_REFUSALS = _KEY_ERRORS - {"account_deactivated", "permission_denied", "permission_error"}
#: The names of errors about the account's money. Many come with 429, as rate limits do.
_ACCOUNT_ERRORS = _KEY_ERRORS | {
    "arrearage",
    "billing_error",
    "billing_hard_limit_reached",
    "billing_not_active",
    "budget_exceeded",
    "credit_limit",
    "credit_exhausted",
    "credits_exhausted",
    "exceeded_current_quota_error",
    "insufficient_balance",
    "insufficient_credits",
    "insufficient_quota",
    "payment_required",
    "quota_exceeded_error",
}
#: The words of errors about the account's money, for errors without a name. Anthropic and Google
#: send them with a 400, xAI and Zhipu with a 429, DeepInfra with a 422.
_MONEY_WORDS = re.compile(
    r"credit balance is too low|(?:insufficient|not enough) (?:account )?"
    r"(?:balance|credits?|funds|quota)|balance is insufficient"
    r"|specified (?:workspace )?API usage limits|enable billing"
    r"|(?:add|enter) a (?:valid )?payment method"
    r"|(?:used all|run out of|out of) (?:\w+ )?(?:credits|funds)|spending limit"
    r"|(?:account|organization) (?:is |has been )?"
    r"(?:suspended|deactivated|disabled|locked|in arrears)"
    r"|余额不足|欠费|账户已被锁定|账号已被锁定",
    re.IGNORECASE,
)
#: The words of errors about a prompt that the provider does not allow.
_MODERATION_WORDS = re.compile(r"content violates (?:our |the )?usage guidelines", re.IGNORECASE)
#: The words of errors about the limit of a key. OpenRouter sends them with a 402 or a 403.
_KEY_LIMIT_WORDS = re.compile(
    r"\bkey limit\b|\blimit (?:of|on|for) (?:this|the|your) (?:api )?key\b"
    r"|key with a higher|openrouter\.ai/[\w/-]*\bkeys\b",
    re.IGNORECASE,
)
#: The words of errors about a key. Google and xAI send them with a 400.
_KEY_WORDS = re.compile(
    r"(?:incorrect|invalid|expired) api[ -]?key|api[ -]?key (?:is )?(?:not valid|invalid|expired)",
    re.IGNORECASE,
)
#: The names of errors about the prompt or the model, even if their status is 403.
_PROMPT_ERRORS = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "context_length_exceeded",
        "model_not_found",
        "moderation_blocked",
    }
)
#: The status of an error that has no status, by its name.
_STATUS_BY_NAME = {
    "badrequesterror": 400,
    "context_length_exceeded": 400,
    "invalid_argument": 400,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "request_too_large": 413,
    "resource_exhausted": 429,
}
