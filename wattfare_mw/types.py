"""Private: the shapes of the protocol: camelCase on the wire, snake_case here, exact amounts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from uuid import UUID

import msgspec

from . import money
from .errors import invalid_request
from .money import Usd

T = TypeVar("T")
#: An app's own id of a user. An int and a UUID become their ``str()``.
UserId = str | int | UUID

#: The prefix of each path of the protocol.
API_PREFIX = "/api/v1"
#: The header with the user who pays (our choice, because the public documents name none).
USER_HEADER = "x-wattfare-user"
#: The header with the grant that pays (our choice).
GRANT_HEADER = "x-wattfare-grant"
#: The header with which an app chooses what to do if a budget pays for less than was asked (our
#: choice).
LOW_BUDGET_HEADER = "x-wattfare-on-low-budget"
#: Its values: lower the call's limit, or refuse the call.
OnLowBudget = Literal["lower", "refuse"]
#: The header with which an app lets a call wait for its budget, in seconds (our choice).
WAIT_HEADER = "x-wattfare-wait"
#: The longest such wait, in seconds (our choice).
MAX_WAIT_SECONDS = 60
#: The response header with the lowered limit of a call, in tokens (our choice).
LOWERED_HEADER = "x-wattfare-max-tokens"
#: The response header with the amount that a call without a bound holds, in USD (our choice).
RESERVED_HEADER = "x-wattfare-reserved"
#: The longest name of a model, in characters (our choice).
MAX_MODEL_CHARACTERS = 256
#: The longest id of a user, in characters (our choice).
MAX_USER_ID = 256
#: The longest accepted name of a user's account at an app, in characters (our choice).
MAX_ACCOUNT_LABEL = 200
_NOT_IN_USER_IDS = re.compile("[\0\ud800-\udfff]")
#: A valid ``X-Request-Id``. Any other is replaced by a new one (our choice).
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}")


def check_user_id(user_id: object) -> str:
    """Check an app's id of a user: text of 1 to :data:`MAX_USER_ID` characters, without NUL, which
    databases cannot store, and without halves of surrogate pairs, which UTF-8 cannot encode.

    Raises:
        WattfareError: ``invalid_request``; the id is invalid.
    """
    if not isinstance(user_id, str):
        why = f", not {type(user_id).__name__}"
    elif not 1 <= len(user_id) <= MAX_USER_ID:
        why = f" of 1 to {MAX_USER_ID} characters"
    elif not user_id.isprintable() and (found := _NOT_IN_USER_IDS.search(user_id)) is not None:
        why = " without NUL" if found[0] == "\0" else " without surrogates"
    else:
        return user_id
    raise invalid_request(f"A user id must be a string{why}.")


def user_id_text(user_id: object) -> str:
    """An app's id of a user (a string, an int or a UUID) as checked text.

    Raises:
        WattfareError: ``invalid_request``; the id is invalid.
    """
    if isinstance(user_id, str):
        return check_user_id(_plain(user_id, str))
    if not isinstance(user_id, (int, UUID)) or isinstance(user_id, bool):
        raise invalid_request(
            f"A user id must be a str, an int or a UUID, not {type(user_id).__name__}."
        )
    try:
        return check_user_id(_plain(user_id, int if isinstance(user_id, int) else UUID))
    except ValueError:  # an int with thousands of digits
        raise invalid_request("A user id must not be a huge int.") from None


def _plain(user_id: object, kind: type[UserId]) -> str:
    """The text of an id. For a member of an enum, the text of its value, and not its name. A lazy
    object, such as Django's, only claims to be of its kind. Its own text is that of its value."""
    if type(user_id) is str:
        return user_id
    if not issubclass(type(user_id), kind):
        return str(user_id)
    to_text: Callable[[Any], str] = cast("Any", int.__repr__ if kind is int else kind.__str__)
    return to_text(user_id)


def readable_label(label: object) -> str | None:
    """The name of a user's account at an app, as a person can read it. Hidden characters are
    removed, and a long name is cut, because a name that a user has chosen must not break the app.

    Returns: up to :data:`MAX_ACCOUNT_LABEL` characters; None if nothing is left.

    Raises:
        WattfareError: ``invalid_request``; it is not a string.
    """
    if not isinstance(label, str):
        raise invalid_request(f"An account label must be a string, not {type(label).__name__}.")
    if not label.isprintable():
        label = "".join(
            each if not is_hidden(each) else " " if each.isspace() else "" for each in label
        )
    return label.strip()[:MAX_ACCOUNT_LABEL].rstrip() or None


def is_hidden(character: str) -> bool:
    """True for what no account label has: control characters, and marks that change the order of
    the characters around them. Two joiners are allowed: some scripts need them, and emoji do."""
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and character not in "\u200c\u200d")


class RequestLimit(msgspec.Struct, rename="camel", frozen=True):
    """The cap that an app asks for on behalf of its user.

    Args:
        monthly_usd: USD per month, 0 to 10⁹; None asks for no cap.

    Raises:
        WattfareError: ``invalid_request``; it is not such a number.
    """

    monthly_usd: Usd | None = None

    if TYPE_CHECKING:  # any number is accepted; the checked amount is stored

        def __init__(self, monthly_usd: money.Number | None = None) -> None: ...

    def __post_init__(self) -> None:
        # Plain numbers are accepted; the checked amount is stored.
        msgspec.structs.force_setattr(self, "monthly_usd", money.cap_usd(self.monthly_usd))


class SessionRequest(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """The cap that an app asks for with a session."""

    request_limit: RequestLimit | None = None


class CreatedSession(msgspec.Struct, rename="camel", frozen=True):
    """A session token for one user's browser, and its expiry in Unix seconds."""

    token: str
    expires_at: int

    def __repr__(self) -> str:
        return f"CreatedSession(token='…', expires_at={self.expires_at})"


class Limits(msgspec.Struct, rename="camel", frozen=True):
    """The caps in force. ``monthly_usd=None`` means unlimited."""

    monthly_usd: Usd | None = None


class Usage(msgspec.Struct, rename="camel", frozen=True):
    """The amount that the user was billed in this UTC month, in USD."""

    monthly_usd: Usd = Usd(0)


class ConnectionStatus(msgspec.Struct, rename="camel", frozen=True):
    """A user's connection to this app.

    Attributes:
        connected: True if the user has connected a budget.
        limits: the caps in force; None if not connected.
        usage: what was billed in this UTC month.
        remaining_usd: what is left of the cap; None if unlimited; 0 if not connected.
    """

    connected: bool
    limits: Limits | None = None
    usage: Usage = Usage()
    remaining_usd: Usd | None = None


class GrantResult(msgspec.Struct, rename="camel", frozen=True):
    """A one-time grant: a token for a number of requests until ``expires_at`` (Unix seconds)."""

    grant_token: str
    expires_at: int
    requests: int

    def __repr__(self) -> str:
        return (
            f"GrantResult(grant_token='…', expires_at={self.expires_at}, requests={self.requests})"
        )


class TokenUsage(msgspec.Struct, frozen=True):
    """The tokens of a call, as the provider counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


def encode(value: object) -> bytes:
    """``value`` as JSON. Amounts keep all their digits.

    Raises:
        TypeError: a value in it has no JSON form.
        WattfareError: ``invalid_request``; a text in it has half of a surrogate pair.
    """
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:
        raise invalid_request(
            "A text has half of a surrogate pair, which UTF-8 cannot encode."
        ) from None


def decode(shape: type[T], body: bytes) -> T:
    """``body`` as ``shape``. Unknown fields are ignored.

    Raises:
        msgspec.MsgspecError: it is not JSON, or does not have this shape.
    """
    return _decode(_decoder(shape), body)


def decode_raw(body: bytes) -> dict[str, Any]:
    """A JSON object with all its fields.

    Raises:
        msgspec.MsgspecError: it is not a JSON object.
    """
    return _decode(_RAW_DECODER, body)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"JSON is malformed: {type(error).__name__}") from None


def _encode_other(value: Any) -> Any:
    if isinstance(value, Decimal):  # msgspec does not accept a subclass of Decimal
        return Decimal(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def _decode_other(shape: type[Any], value: Any) -> Any:
    if shape is Usd:
        return money.amount(value)
    raise NotImplementedError(f"{shape.__name__} is not a shape of the protocol")


def exact(digits: str) -> Decimal:
    """A number of JSON, for a decoder's ``float_hook``.

    Raises:
        ValueError: its exponent is out of any range.
    """
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent of twenty digits
        raise ValueError("a number out of any range") from None


_RAW_DECODER = msgspec.json.Decoder(dict[str, Any])
_ENCODER = msgspec.json.Encoder(decimal_format="number", enc_hook=_encode_other)


@cache
def _decoder(shape: Any) -> msgspec.json.Decoder[Any]:
    # Numbers are Decimal, so that no digit is lost in a float.
    return msgspec.json.Decoder(shape, dec_hook=_decode_other, float_hook=exact)
