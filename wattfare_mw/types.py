"""The shapes of the protocol: camelCase on the wire, snake_case here, amounts exact."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from . import money
from .errors import invalid_request
from .money import Usd

T = TypeVar("T")

#: What stands before each path of the protocol.
API_PREFIX = "/api/v1"
#: The header that names the user who pays (a choice of ours: the public documents name none).
USER_HEADER = "x-wattfare-user"
#: The header that holds the grant that pays (likewise).
GRANT_HEADER = "x-wattfare-grant"
#: The header with which an app says what it wants where a budget pays for less than was asked.
LOW_BUDGET_HEADER = "x-wattfare-on-low-budget"
#: What it can say (likewise): lower the call's limit, or refuse the call.
OnLowBudget = Literal["lower", "refuse"]
#: The header with which an app lets a call wait for its budget, in seconds (likewise).
WAIT_HEADER = "x-wattfare-wait"
#: The longest such wait, in seconds (likewise).
MAX_WAIT_SECONDS = 60
#: The header that says what a call's limit was lowered to, in tokens (likewise).
LOWERED_HEADER = "x-wattfare-max-tokens"
#: The header that says what a call holds whose cost has no bound, in USD (likewise).
RESERVED_HEADER = "x-wattfare-reserved"
#: The longest name of a model that is taken, in characters (likewise).
MAX_MODEL_CHARACTERS = 256
#: The longest id of a user that is taken, in characters (likewise).
MAX_USER_ID = 256
#: The longest name of a user's account at an app that is taken, in characters (likewise).
MAX_ACCOUNT_LABEL = 200
_NOT_IN_USER_IDS = re.compile("[\0\ud800-\udfff]")
#: An ``X-Request-Id`` that is taken over; any other is replaced by one of our own (likewise).
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}")


def check_user_id(user_id: object) -> str:
    """An app's own id of a user, if it can be one: any text of 1 to :data:`MAX_USER_ID`
    characters, without NUL, which databases do not keep, and without halves of surrogate pairs,
    which have no form in UTF-8.

    Raises:
        WattfareError: ``invalid_request``; it cannot.
    """
    if not isinstance(user_id, str):
        why = f"not {type(user_id).__name__}"
    elif not 1 <= len(user_id) <= MAX_USER_ID:
        why = f"of 1 to {MAX_USER_ID} characters"
    elif not user_id.isprintable() and (found := _NOT_IN_USER_IDS.search(user_id)) is not None:
        why = "without NUL" if found[0] == "\0" else "without surrogates"
    else:
        return user_id
    raise invalid_request(f"A user id is a string, {why}.")


def readable_label(label: object) -> str | None:
    """The name of a user's account at an app, as a person can read it. Hidden characters are left
    out, and what is too long is cut off: a name that a user has chosen must not break the app.

    Returns: up to :data:`MAX_ACCOUNT_LABEL` characters; None if nothing is left.

    Raises:
        WattfareError: ``invalid_request``; it is not a string.
    """
    if not isinstance(label, str):
        raise invalid_request(f"An account label is a string, not {type(label).__name__}.")
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
        monthly_usd: USD in a month, 0 to 10⁹; None asks for no cap.

    Raises:
        WattfareError: ``invalid_request``; not such a number.
    """

    monthly_usd: Usd | None = None

    if TYPE_CHECKING:  # any number may be given; what is kept is the amount

        def __init__(self, monthly_usd: money.Number | None = None) -> None: ...

    def __post_init__(self) -> None:
        # Plain numbers are welcome from Python; what is kept is the checked amount.
        msgspec.structs.force_setattr(self, "monthly_usd", money.cap_usd(self.monthly_usd))


class SessionRequest(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """What an app may ask of a session."""

    request_limit: RequestLimit | None = None


class CreatedSession(msgspec.Struct, rename="camel", frozen=True):
    """A session token for one user's browser, and when it ends (Unix seconds)."""

    token: str
    expires_at: int

    def __repr__(self) -> str:
        return f"CreatedSession(token='…', expires_at={self.expires_at})"


class Limits(msgspec.Struct, rename="camel", frozen=True):
    """The caps in force. ``monthly_usd=None``: unlimited."""

    monthly_usd: Usd | None = None


class Usage(msgspec.Struct, rename="camel", frozen=True):
    """What the user has been billed, in USD, this UTC month."""

    monthly_usd: Usd = Usd(0)


class ConnectionStatus(msgspec.Struct, rename="camel", frozen=True):
    """A user's connection to this app.

    Attributes:
        connected: has the user connected a budget?
        limits: the caps in force; None while not connected.
        usage: what is billed in this UTC month.
        remaining_usd: what is left of the cap; None = unlimited; 0 while not connected.
    """

    connected: bool
    limits: Limits | None = None
    usage: Usage = Usage()
    remaining_usd: Usd | None = None


class GrantResult(msgspec.Struct, rename="camel", frozen=True):
    """A one-time grant: a token good for so many requests until ``expires_at`` (Unix seconds)."""

    grant_token: str
    expires_at: int
    requests: int

    def __repr__(self) -> str:
        return (
            f"GrantResult(grant_token='…', expires_at={self.expires_at}, requests={self.requests})"
        )


class TokenUsage(msgspec.Struct, frozen=True):
    """What a call used, in tokens, as the provider counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


def encode(value: object) -> bytes:
    """``value`` as JSON, its amounts as numbers with every digit that they have.

    Raises:
        TypeError: something in it has no JSON form.
        WattfareError: ``invalid_request``; a text in it has none, for half of a surrogate pair.
    """
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:
        raise invalid_request(
            "A text holds half of a surrogate pair, which has no form in UTF-8."
        ) from None


def decode(shape: type[T], body: bytes) -> T:
    """``body`` as ``shape``. Fields that the shape does not know are passed over.

    Raises:
        msgspec.MsgspecError: it is not JSON, or not of this shape.
    """
    return _decode(_decoder(shape), body)


def decode_raw(body: bytes) -> dict[str, Any]:
    """A JSON object as it came, for whoever wants more than the shapes here hold.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return _decode(_RAW_DECODER, body)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"JSON is malformed: {type(error).__name__}") from None


def _encode_other(value: Any) -> Any:
    if isinstance(value, Decimal):  # a subclass of Decimal is no Decimal to msgspec
        return Decimal(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def _decode_other(shape: type[Any], value: Any) -> Any:
    if shape is Usd:
        return money.amount(value)
    raise NotImplementedError(f"{shape.__name__} is no shape of the wire")


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
    # Numbers come as Decimal, so that no digit is lost on the way through a float.
    return msgspec.json.Decoder(shape, dec_hook=_decode_other, float_hook=exact)
