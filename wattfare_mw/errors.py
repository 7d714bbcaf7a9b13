"""The WattfareError family, its wire form, and the three helpers that see through the error of
an AI library to the one inside it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

import msgspec


class Shortfall(msgspec.Struct, frozen=True, kw_only=True):
    """Why a budget does not pay for a call, as far as that is known.

    Attributes:
        needed_usd: the least that the call needs, in USD.
        remaining_usd: what is left for it, in USD.
        resets_at: when the budget begins anew (UTC).
        limited_by: ``cap``, the user's own; ``ceiling``, the operator's; ``grant``;
            ``in_flight``, calls that have not ended; or ``funding``, the payer's own key or
            account at the provider.
    """

    needed_usd: Decimal | None = None
    remaining_usd: Decimal | None = None
    resets_at: datetime | None = None
    limited_by: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """The fields of the protocol's JSON."""
        fields: dict[str, Any] = {}
        for name, value in (
            ("neededUsd", self.needed_usd),
            ("remainingUsd", self.remaining_usd),
        ):
            if value is not None:
                fields[name] = float(value)
        if self.resets_at is not None:
            fields["resetsAt"] = int(self.resets_at.timestamp())
        if self.limited_by is not None:
            fields["limitedBy"] = self.limited_by
        return fields


#: What is known of most errors.
_NO_SHORTFALL = Shortfall()


class WattfareError(Exception):
    """Anything that Wattfare refuses or cannot do; its subclasses say what to do about it.

    Attributes:
        code: the protocol's word for it, e.g. ``"budget_exceeded"``.
        status: the HTTP status as answered; 0 where nothing answered at all.
        message: for people; never holds a secret.
        retry_after: seconds to wait before trying again, where the service said so.
        request_id: the service's id of the call, where it gave one: what support asks for.
        upstream_code: the code of the model's provider, such as ``"context_length_exceeded"``, if
            it refused the call and gave one.
        shortfall: why a budget does not pay for the call, if that is the reason. ``needed_usd``,
            ``remaining_usd``, ``resets_at`` and ``limited_by`` give its parts.
        manage_url: the page on which the user changes the budget, if the service named one.
        log_message: what the log says of it: the message, or words of ours if the message
            repeats those of a service or an upstream.
    """

    default_code: ClassVar[str] = "unknown"
    default_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
        upstream_code: str | None = None,
        shortfall: Shortfall | None = None,
        manage_url: str | None = None,
    ) -> None:
        self.code = code or self.default_code
        self.status = self.default_status if status is None else status
        self.message = message or (type(self).__doc__ or self.code).split("\n")[0]
        self.retry_after = retry_after
        self.request_id = request_id
        self.upstream_code = upstream_code
        self.shortfall = shortfall or _NO_SHORTFALL
        self.manage_url = manage_url
        self.log_message = self.message
        super().__init__(self.message)

    @property
    def needed_usd(self) -> Decimal | None:
        """The least that the call needs, in USD; None if the error does not say."""
        return self.shortfall.needed_usd

    @property
    def remaining_usd(self) -> Decimal | None:
        """What the budget has left for the call, in USD; None if the error does not say."""
        return self.shortfall.remaining_usd

    @property
    def resets_at(self) -> datetime | None:
        """When the budget begins anew (UTC); None if it does not, or the error does not say."""
        return self.shortfall.resets_at

    @property
    def limited_by(self) -> str | None:
        """What limits the call: ``cap``, ``ceiling``, ``grant``, ``in_flight`` or ``funding``; None
        if the error does not say."""
        return self.shortfall.limited_by

    def quote(self, words: str) -> None:
        """Take another party's words as the message. They are for the client, and not for the
        log: they may repeat a prompt."""
        self.message = words
        self.args = (words,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, code={self.code!r}, status={self.status})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Each class has an `__init__` of its own, which a copy must not go through: say how one
        # is made, or a worker pool cannot hand it back.
        return (restore, (type(self), self.message), self.__dict__)

    def to_wire(self) -> dict[str, dict[str, Any]]:
        """The protocol's JSON: ``{"error": {"code", "message"}}``, ``upstreamCode`` and
        ``manageUrl`` if there are any, and what is known of the budget."""
        fields: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.upstream_code is not None:
            fields["upstreamCode"] = self.upstream_code
        fields.update(self.shortfall.to_wire())
        if self.manage_url is not None:
            fields["manageUrl"] = self.manage_url
        return {"error": fields}

    def to_json(self) -> bytes:
        """:meth:`to_wire`, encoded."""
        return msgspec.json.encode(self.to_wire())

    @property
    def http_status(self) -> int:
        """The status to answer an HTTP client with: 502 where the service was not reached, or
        answered what is no error and no success either."""
        return self.status if 400 <= self.status <= 599 else 502


class WattfareNotConnectedError(WattfareError):
    """This user has not connected a budget yet. Offer to connect one."""

    default_code = "not_connected"
    default_status = 402


class WattfareBudgetExceededError(WattfareError):
    """The budget does not pay for the call. Show the usage, and let the user raise the cap."""

    default_code = "budget_exceeded"
    default_status = 402


class WattfareFundingError(WattfareError):
    """The user's funding was refused by the model's provider. The user must reconnect."""

    default_code = "funding_invalid"
    default_status = 402


class WattfareGrantError(WattfareError):
    """The grant is unknown, expired, used up or over its dollar cap. Ask for a new one."""

    default_code = "grant_invalid"
    default_status = 402


class WattfareRateLimitError(WattfareError):
    """Too many requests. Slow down."""

    default_code = "rate_limited"
    default_status = 429


class WattfareAuthError(WattfareError):
    """A bad or missing credential. Check the app's secret key."""

    default_code = "auth"
    default_status = 401


class WattfareNetworkError(WattfareError):
    """The service could not be reached. Try again, with backoff.

    Attributes:
        sent: False where the connection was never made, so that nothing can have been billed.
    """

    default_code = "network"
    default_status = 0
    _public: str | None = None

    def __init__(self, message: str = "", *, sent: bool = True, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.sent = sent

    def named(self, service: str, advice: str = "Check WATTFARE_BASE_URL.") -> WattfareNetworkError:
        """The same error. If the service was not reached, the message names it and gives advice.

        Args:
            service: the service's address, without a path and without credentials.
            advice: what to do, as a sentence.
        """
        if self.sent:
            return self
        message = f"Wattfare could not be reached at {service}. {advice}"
        error = WattfareNetworkError(message, sent=False)
        error._public = self.message
        error.__cause__ = self.__cause__
        return error

    def to_wire(self) -> dict[str, dict[str, Any]]:
        """The protocol's JSON. It goes to browsers, and does not name the service's host."""
        return {"error": {"code": self.code, "message": self._public or self.message}}


class SetupError(WattfareError):
    """The app's environment is not set up for calls of Wattfare. The message says what to change.

    The message is for the app's log. Browsers get one that names no file and no variable.
    """

    def to_wire(self) -> dict[str, dict[str, Any]]:
        """The protocol's JSON."""
        message = "This app is not set up to call Wattfare. Its log says what to change."
        return {"error": {"code": self.code, "message": message}}


class WattfareCurrentUserError(SetupError, RuntimeError):
    """There is no current user here. Pass ``user`` explicitly to code outside of a request."""


def invalid_request(message: str, status: int = 400) -> WattfareError:
    """``invalid_request``: the request is wrong, and the message says what is wrong with it."""
    return WattfareError(message, code="invalid_request", status=status)


def restore(cls: type[WattfareError], message: str) -> WattfareError:
    """A copy of an error, before it gets its attributes. For pickle."""
    return cls.__new__(cls, message)


_CLASSES: dict[str, type[WattfareError]] = {
    cls.default_code: cls
    for cls in (
        WattfareNotConnectedError,
        WattfareBudgetExceededError,
        WattfareFundingError,
        WattfareGrantError,
        WattfareRateLimitError,
        WattfareAuthError,
        WattfareNetworkError,
    )
}
#: Every code of the protocol, those that have a class of their own and the rest; and the status
#: of each, where an error comes without one.
STATUS_BY_CODE = {
    **{code: cls.default_status for code, cls in _CLASSES.items()},
    "invalid_request": 400,
    "upstream": 502,
    "unknown": 500,
}
#: What a status alone says, where the answer carried no code that we know.
_CODE_BY_STATUS = {
    401: "auth",
    429: "rate_limited",
    **dict.fromkeys((400, 403, 405, 409, 413, 415, 422), "invalid_request"),
    **dict.fromkeys((408, 502, 503, 504, 529), "upstream"),
}


#: The longest code of an upstream that is passed on, in characters.
MAX_UPSTREAM_CODE = 100
#: The longest name of a limit that is read, in characters.
MAX_LIMIT_NAME = 32
#: The longest URL of a page that is read, in characters.
MAX_MANAGE_URL = 2048
#: The largest amount that is read, in USD; and the latest moment, in Unix seconds.
_MAX_USD = 10**12
_MAX_MOMENT = 10**11


class WireError(msgspec.Struct, frozen=True):
    """What an ``error`` in an answer tells. ``code`` is None where it gives none of words: some
    providers write a number there."""

    code: str | None = None
    message: str = ""
    upstream_code: str | None = None
    shortfall: Shortfall | None = None
    manage_url: str | None = None


class _WireEnvelope(msgspec.Struct):
    error: dict[str, Any] | str


_decode_envelope = msgspec.json.Decoder(_WireEnvelope).decode


def make_error(
    code: str | None, message: str = "", *, status: int | None = None, **fields: Any
) -> WattfareError:
    """The error of this code, in its class; a code that the protocol does not know goes by its
    status and is named in the message."""
    if code not in STATUS_BY_CODE:
        if code is not None:
            message = f"{message} (code {code[:100]!r})".lstrip()
        code = _CODE_BY_STATUS.get(status or 0, "unknown")
    if status is None:
        status = STATUS_BY_CODE[code]
    error = _CLASSES.get(code, WattfareError)(
        f"Wattfare answered {status}.", code=code, status=status, **fields
    )
    error.quote(message or (type(error).__doc__ or code).split("\n")[0])
    return error


def error_from_answer(
    status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> WattfareError:
    """The typed error that an answer of the service stands for, whatever its body is: the
    protocol's JSON, a proxy's HTML page, or half of either."""
    headers = headers or {}
    about: dict[str, Any] = {
        "status": status,
        "retry_after": retry_after_in(headers),
        "request_id": headers.get("x-request-id"),
    }
    error = wire_error(body)
    if error is not None:
        about["upstream_code"] = error.upstream_code
        about["shortfall"] = error.shortfall
        about["manage_url"] = error.manage_url
        return make_error(error.code, error.message or f"Wattfare answered {status}.", **about)
    if 300 <= status < 400:
        message = (
            f"Wattfare answered with a redirect ({status}), which is not followed: check base_url."
        )
    elif status == 404:
        message = "Nothing answers at this address (404): check base_url."
    else:
        message = f"Wattfare answered {status} without an error in its JSON form."
    failure = make_error(None, message, **about)
    failure.log_message = message  # it is ours
    return failure


def wire_error(body: bytes) -> WireError | None:
    """The ``{"error": {"code", "message"}}`` in a body or an event's data, or None; an error that
    tells nothing at all is none."""
    try:
        error = _decode_envelope(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(error, str):
        return WireError(message=error) if error else None
    return _told(error)


def _told(error: Mapping[Any, Any]) -> WireError | None:
    code, message, upstream = (error.get(name) for name in ("code", "message", "upstreamCode"))
    if not code and not message:
        return None
    return WireError(
        code if isinstance(code, str) else None,
        message if isinstance(message, str) else "",
        upstream[:MAX_UPSTREAM_CODE] if isinstance(upstream, str) and upstream else None,
        _shortfall(error),
        _manage_url(error.get("manageUrl")),
    )


def _manage_url(value: object) -> str | None:
    """A URL that an app can show as a link. A link to ``javascript:`` would run in its page."""
    if (
        isinstance(value, str)
        and value.startswith(("https://", "http://"))
        and len(value) <= MAX_MANAGE_URL
        and value.isascii()
        and value.isprintable()
    ):
        return value
    return None


def _shortfall(error: Mapping[Any, Any]) -> Shortfall | None:
    """What an error says of the budget. A part that cannot be read is left out."""
    if _SHORTFALL_FIELDS.isdisjoint(error):
        return None
    limit = error.get("limitedBy")
    named = isinstance(limit, str) and limit.isidentifier() and len(limit) <= MAX_LIMIT_NAME
    return Shortfall(
        needed_usd=_usd(error.get("neededUsd")),
        remaining_usd=_usd(error.get("remainingUsd")),
        resets_at=_moment(error.get("resetsAt")),
        limited_by=limit if named else None,
    )


_SHORTFALL_FIELDS = frozenset({"neededUsd", "remainingUsd", "resetsAt", "limitedBy"})


def _usd(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MAX_USD:
        return None
    return Decimal(repr(value))  # a float's shortest form is what was written


def _moment(value: object) -> datetime | None:
    """Unix seconds as a moment in UTC."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return datetime.fromtimestamp(value, UTC) if 0 < value < _MAX_MOMENT else None


#: The longest wait that is passed on, in seconds.
_A_DAY = 86_400.0


def retry_after_seconds(value: str | None) -> float | None:
    """The seconds that a ``Retry-After`` says, which is a number of seconds or a date: 0 for a
    date in the past, a day for more than a day, and None for anything else."""
    seconds = _number(value or "")
    return _up_to_a_day(_seconds_until(value or "") if seconds is None else seconds)


def retry_after_in(headers: Mapping[str, str]) -> float | None:
    """The seconds to wait that the headers of an answer say. Their names are in lower case, or can
    be read in any case."""
    milliseconds = _number(headers.get("retry-after-ms") or "")
    # OpenAI's header, which is more exact.
    exact = None if milliseconds is None else _up_to_a_day(milliseconds / 1000)
    return retry_after_seconds(headers.get("retry-after")) if exact is None else exact


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _up_to_a_day(seconds: float) -> float | None:
    return min(seconds, _A_DAY) if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_until(date: str) -> float:
    from email.utils import parsedate_to_datetime  # it is slow to import, and rarely needed

    try:
        return max(parsedate_to_datetime(date[:100]).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, OSError):
        return math.nan


def to_wattfare_error(error: BaseException | None) -> WattfareError | None:
    """The Wattfare error inside ``error``, or None.

    It looks through what AI libraries wrap around it: causes, contexts and exception groups,
    and the ``body`` or ``response`` that an HTTP error of openai, pydantic-ai or httpx carries.
    ``retry_after`` and ``request_id`` come from the headers of the response.
    """
    for inner in unwrapped(error):
        found = inner if isinstance(inner, WattfareError) else _from_http_error(inner)
        if found is not None:
            if found is not inner:
                _add_headers(found, inner)
            return found
    return None


def is_budget_exceeded(error: BaseException | None) -> bool:
    """Does the budget not pay for the call?"""
    return isinstance(to_wattfare_error(error), WattfareBudgetExceededError)


def is_not_connected(error: BaseException | None) -> bool:
    """Must the user connect a budget, or connect it again?"""
    return isinstance(to_wattfare_error(error), (WattfareNotConnectedError, WattfareFundingError))


def unwrapped(error: BaseException | None, *, suppressed: bool = False) -> Iterator[BaseException]:
    """``error``, and all that is behind it and in it; with ``suppressed``, also what a ``from
    None`` says is not the reason."""
    seen: set[int] = set()
    queue: deque[BaseException | None] = deque([error])
    while queue:
        inner = queue.popleft()
        if inner is None or id(inner) in seen:
            continue
        seen.add(id(inner))
        yield inner
        queue.append(inner.__cause__)
        if suppressed or not inner.__suppress_context__:
            queue.append(inner.__context__)
        if isinstance(inner, BaseExceptionGroup):
            queue.extend(inner.exceptions)  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of ``error`` and of all that is behind it. For errors of a library that
    was given a secret: its frames hold the secret in their local variables, and a reporter of
    tracebacks may print those."""
    for inner in unwrapped(error, suppressed=True):
        inner.__traceback__ = None


def _from_http_error(error: BaseException) -> WattfareError | None:
    """By the shapes that HTTP errors of AI libraries share, so that none has to be imported."""
    response = _attribute(error, "response")
    status = _attribute(error, "status_code") or _attribute(response, "status_code")
    if not isinstance(status, int):
        status = None
    for body in (_attribute(error, "body"), _attribute(response, "_content")):
        wire = _wire_error_of(body)
        # Other services have an `error` in their JSON too: only our own codes are ours.
        if wire is not None and wire.code != "unknown" and wire.code in STATUS_BY_CODE:
            return make_error(
                wire.code,
                wire.message,
                status=status,
                upstream_code=wire.upstream_code,
                shortfall=wire.shortfall,
                manage_url=wire.manage_url,
            )
    return None


def _add_headers(found: WattfareError, error: BaseException) -> None:
    """What the headers of a library's response say. The library's own error may hold the body only,
    and its cause the response. The headers of one response count: another one behind it may be
    that of an earlier call."""
    for inner in unwrapped(error):
        response = _attribute(inner, "response")
        places = ((response, "headers"), (inner, "litellm_response_headers"), (inner, "headers"))
        for value, name in places:
            headers = _attribute(value, name)
            if found.retry_after is None:
                names = ("retry-after-ms", "retry-after")
                found.retry_after = retry_after_in(
                    {name: value for name in names if (value := _header(headers, name)) is not None}
                )
            if found.request_id is None:
                request_id = _header(headers, "x-request-id")
                if request_id and len(request_id) <= _MAX_REQUEST_ID and request_id.isprintable():
                    found.request_id = request_id
        if found.retry_after is not None or found.request_id is not None:
            return


_MAX_REQUEST_ID = 128


def _header(headers: object, wanted: str) -> str | None:
    if not isinstance(headers, Mapping):
        return None
    try:
        for name, value in headers.items():  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
            if isinstance(name, str) and name.lower() == wanted and isinstance(value, str):
                return value
    except Exception:
        return None
    return None


def _attribute(value: object, name: str) -> object:
    # A stranger's property may raise; whoever asks is in the middle of dealing with an error.
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _wire_error_of(body: object) -> WireError | None:
    if isinstance(body, str):
        body = body.encode("utf-8", "replace")
    if isinstance(body, (bytes, bytearray)):
        return wire_error(bytes(body))
    if isinstance(body, Mapping):
        # The openai package has taken the error out of its envelope already.
        inner: object = body.get("error", body)  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
        if isinstance(inner, Mapping):
            return _told(inner)  # pyright: ignore[reportUnknownArgumentType]
    return None
