"""Private: the objects of the protocol. Their JSON has camelCase names, and their attributes have
snake_case names. Amounts are exact."""

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
#: A decoded JSON value. With this type, `isinstance` is enough to read a value: no `cast`, which is
#: a call at run time.
Json = dict[str, Any] | list[Any] | str | int | float | Decimal | None
#: An app's own id of a user. An int or a UUID is converted with ``str()``.
UserId = str | int | UUID

#: The prefix of each path of the protocol.
API_PREFIX = "/api/v1"
#: The header with the user who pays (our choice, because the public documents do not name it).
USER_HEADER = "x-wattfare-user"
#: The header with the grant that pays (our choice).
GRANT_HEADER = "x-wattfare-grant"
#: The header that says what to do if the budget does not cover the whole call (our choice).
LOW_BUDGET_HEADER = "x-wattfare-on-low-budget"
#: The values of this header: lower the call's ``max_tokens``, or refuse the call.
OnLowBudget = Literal["lower", "refuse"]
#: The header that says how long a call may wait for its budget, in seconds (our choice).
WAIT_HEADER = "x-wattfare-wait"
#: The longest such wait, in seconds (our choice).
MAX_WAIT_SECONDS = 60
#: The response header with the lowered ``max_tokens`` of a call (our choice).
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
#: A valid ``X-Request-Id``. An invalid one is replaced by a new id (our choice).
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}")


def check_user_id(user_id: object) -> str:
    """Check an app's id of a user. It is text of 1 to :data:`MAX_USER_ID` characters. It must not
    contain NUL, which databases cannot store, or a lone surrogate, which UTF-8 cannot encode.

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
    """Convert an app's id of a user (a string, an int or a UUID) to text, and check it.

    Raises:
        WattfareError: ``invalid_request``; the id is invalid.
    """
    if type(user_id) is str:
        return check_user_id(user_id)
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
    """The text of an id. For a member of an enum, this is the text of its value, not its name. A
    lazy object, such as Django's, only pretends to have its type, so its own ``str()`` is used."""
    if not issubclass(type(user_id), kind):
        return str(user_id)
    to_text: Callable[[Any], str] = cast("Any", int.__repr__ if kind is int else kind.__str__)
    return to_text(user_id)


def readable_label(label: object) -> str | None:
    """Make the name of a user's account readable. Hidden characters are removed, and a long name is
    cut. It is not refused, because a name that a user has chosen must not break the app.

    Returns: up to :data:`MAX_ACCOUNT_LABEL` characters; None if no characters are left.

    Raises:
        WattfareError: ``invalid_request``; the label is not a string.
    """
    if not isinstance(label, str):
        raise invalid_request(f"An account label must be a string, not {type(label).__name__}.")
    if not label.isprintable():
        label = "".join(
            each if not is_hidden(each) else " " if each.isspace() else "" for each in label
        )
    return label.strip()[:MAX_ACCOUNT_LABEL].rstrip() or None


def is_hidden(character: str) -> bool:
    """True for characters that an account label must not have: control characters, and marks that
    change the direction of text. Two joiners are allowed, because some scripts and emoji need
    them."""
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and character not in "\u200c\u200d")


class RequestLimit(msgspec.Struct, rename="camel", frozen=True):
    """The cap that an app asks for on behalf of its user.

    Args:
        monthly_usd: USD per month, from 0 to 10⁹. If None, the app does not ask for a cap.

    Raises:
        WattfareError: ``invalid_request``; the cap is not such a number.
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
    """A session token for one user's browser. ``expires_at`` is in Unix seconds."""

    token: str
    expires_at: int

    def __repr__(self) -> str:
        return f"CreatedSession(token='…', expires_at={self.expires_at})"


class Limits(msgspec.Struct, rename="camel", frozen=True):
    """The current cap. If ``monthly_usd`` is None, there is no cap."""

    monthly_usd: Usd | None = None


class Usage(msgspec.Struct, rename="camel", frozen=True):
    """The amount billed in the current month (UTC), in USD."""

    monthly_usd: Usd = Usd(0)


class ConnectionStatus(msgspec.Struct, rename="camel", frozen=True):
    """A user's connection to this app.

    Attributes:
        connected: True if the user has connected a budget.
        limits: the current cap. None if not connected.
        usage: the amount billed in the current month (UTC).
        remaining_usd: the rest of the cap, in USD. None if there is no cap; 0 if not connected.
    """

    connected: bool
    limits: Limits | None = None
    usage: Usage = Usage()
    remaining_usd: Usd | None = None


class GrantResult(msgspec.Struct, rename="camel", frozen=True):
    """A one-time grant: a token that pays for a number of requests until ``expires_at`` (Unix
    seconds)."""

    grant_token: str
    expires_at: int
    requests: int

    def __repr__(self) -> str:
        return (
            f"GrantResult(grant_token='…', expires_at={self.expires_at}, requests={self.requests})"
        )


class TokenUsage(msgspec.Struct, frozen=True):
    """The tokens of a call, as counted by the provider."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


def encode(value: object) -> bytes:
    """Encode ``value`` as JSON. Amounts keep all their digits.

    Raises:
        TypeError: a value in it cannot be converted to JSON.
        WattfareError: ``invalid_request``; a text in it has a lone surrogate.
    """
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:
        raise invalid_request("A text has a lone surrogate, which UTF-8 cannot encode.") from None


def decode(shape: type[T], body: bytes) -> T:
    """Decode ``body`` as a ``shape``. Unknown fields are ignored.

    Raises:
        msgspec.MsgspecError: the body is not JSON, or does not have this shape.
    """
    try:
        return _decoder(shape).decode(body)
    except _MALFORMED as error:
        raise _malformed(error) from None


def decode_raw(body: bytes) -> dict[str, Any]:
    """Decode a JSON object with all its fields.

    Raises:
        msgspec.MsgspecError: the body is not a JSON object.
    """
    try:
        return _RAW_DECODER.decode(body)
    except _MALFORMED as error:
        raise _malformed(error) from None


#: What msgspec raises for some bodies that are not JSON, besides its own errors.
_MALFORMED = (UnicodeDecodeError, RecursionError)


def _malformed(error: Exception) -> msgspec.DecodeError:
    return msgspec.DecodeError(f"JSON is malformed: {type(error).__name__}")


def fields_of(value: Json) -> dict[str, Any]:
    """The fields of a decoded JSON object. Any other value has none."""
    return value if isinstance(value, dict) else {}


def _encode_other(value: Any) -> Any:
    if isinstance(value, Decimal):  # msgspec does not accept a subclass of Decimal
        return Decimal(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def _decode_other(shape: type[Any], value: Any) -> Any:
    if shape is Usd:
        return money.amount(value)
    raise NotImplementedError(f"{shape.__name__} is not a shape of the protocol")


def exact(digits: str) -> Decimal:
    """Convert a JSON number to a Decimal, as a decoder's ``float_hook``.

    Raises:
        ValueError: the exponent is too large.
    """
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent of twenty digits
        raise ValueError("a number has too large an exponent") from None


_RAW_DECODER = msgspec.json.Decoder(dict[str, Any])
_ENCODER = msgspec.json.Encoder(decimal_format="number", enc_hook=_encode_other)


@cache
def _decoder(shape: Any) -> msgspec.json.Decoder[Any]:
    # Numbers become Decimal, because a float would lose digits.
    return msgspec.json.Decoder(shape, dec_hook=_decode_other, float_hook=exact)
