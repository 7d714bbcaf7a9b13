"""Private: the ``WattfareError`` classes, their JSON, and functions that find a WattfareError
inside an AI library's error."""

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
    """Why a budget does not cover a call. Each attribute is None if it is unknown.

    Attributes:
        needed_usd: the smallest budget that is enough for the call, in USD.
        remaining_usd: the unspent part of the limit in ``limited_by``, in USD. With
            ``in_flight``, the part that is neither spent nor reserved.
        resets_at: when the budget resets (UTC).
        limited_by: the limit that was reached. ``cap`` is the user's cap, ``ceiling`` the
            operator's limit, and ``grant`` the grant's amount. ``in_flight``: running calls
            have reserved the rest of the budget. ``funding``: the payer's own key or account
            at the provider has reached a limit.
    """

    needed_usd: Decimal | None = None
    remaining_usd: Decimal | None = None
    resets_at: datetime | None = None
    limited_by: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """The fields in the protocol's JSON."""
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


#: For an error that is not about a budget.
_NO_SHORTFALL = Shortfall()


class WattfareError(Exception):
    """The base of all Wattfare errors. Each subclass needs a different reaction of the app.

    Attributes:
        code: the protocol's code, such as ``"budget_exceeded"``.
        status: the HTTP status of the response; 0 if there was no response.
        message: a text for people. It never contains a secret.
        retry_after: how long to wait before a retry, in seconds. None if the service does not say.
        request_id: the service's id of the call, for support. None if there is none.
        upstream_code: the provider's own error code, such as ``"context_length_exceeded"``. None if
            the provider did not send one.
        shortfall: why a budget does not cover the call. ``needed_usd``, ``remaining_usd``,
            ``resets_at`` and ``limited_by`` are its parts.
        manage_url: the URL of the page on which the payer can change the budget. None if the
            service did not send one.
        log_message: the text for the log. It is the message, or a safe text if the message comes
            from the service or the upstream.
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
        """The smallest budget that is enough for the call, in USD; None if unknown."""
        return self.shortfall.needed_usd

    @property
    def remaining_usd(self) -> Decimal | None:
        """The amount that is left for the call, in USD; None if unknown. See :class:`Shortfall`."""
        return self.shortfall.remaining_usd

    @property
    def resets_at(self) -> datetime | None:
        """When the budget resets (UTC); None if it does not, or if unknown."""
        return self.shortfall.resets_at

    @property
    def limited_by(self) -> str | None:
        """The limit that was reached: ``cap``, ``ceiling``, ``grant``, ``in_flight`` or
        ``funding``. None if unknown. See :class:`Shortfall`."""
        return self.shortfall.limited_by

    def quote(self, words: str) -> None:
        """Use a text of the service or the upstream as the message. The client gets it, but the log
        does not, because it may repeat a prompt."""
        self.message = words
        self.args = (words,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, code={self.code!r}, status={self.status})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The subclasses have different `__init__` methods, so pickle must not call them. A worker
        # pool needs pickle to return an error.
        return (restore, (type(self), self.message), self.__dict__)

    def to_wire(self) -> dict[str, dict[str, Any]]:
        """The protocol's JSON: ``{"error": {"code", "message"}}``. It also has ``upstreamCode``,
        ``manageUrl`` and the parts of the shortfall, if they are known."""
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
        """The status of the response to an HTTP client. It is 502 if the service could not be
        reached, or if its answer was neither a success nor an error."""
        return self.status if 400 <= self.status <= 599 else 502


class WattfareNotConnectedError(WattfareError):
    """The user has not connected a budget. Offer to connect one."""

    default_code = "not_connected"
    default_status = 402


class WattfareBudgetExceededError(WattfareError):
    """The budget does not cover the call. Show the usage, and let the user raise the cap."""

    default_code = "budget_exceeded"
    default_status = 402


class WattfareFundingError(WattfareError):
    """The provider refused the payer's funding. The user must connect a budget again."""

    default_code = "funding_invalid"
    default_status = 402


class WattfareGrantError(WattfareError):
    """The grant is unknown, expired, used up or too small. Ask for a new grant."""

    default_code = "grant_invalid"
    default_status = 402


class WattfareRateLimitError(WattfareError):
    """There were too many requests. Wait before the next one."""

    default_code = "rate_limited"
    default_status = 429


class WattfareAuthError(WattfareError):
    """A credential is missing or invalid. Check the app's secret key."""

    default_code = "auth"
    default_status = 401


class WattfareNetworkError(WattfareError):
    """The service could not be reached. Try again later.

    Attributes:
        sent: False if there was no connection, so nothing can have been billed.
    """

    default_code = "network"
    default_status = 0
    _public: str | None = None

    def __init__(self, message: str = "", *, sent: bool = True, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.sent = sent

    def named(self, service: str, advice: str = "Check WATTFARE_BASE_URL.") -> WattfareNetworkError:
        """Return this error. If the service could not be reached, the message now names the service
        and ends with the advice.

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
        """The protocol's JSON. It does not name the service's host, because browsers get it."""
        return {"error": {"code": self.code, "message": self._public or self.message}}


class SetupError(WattfareError):
    """The environment of the app prevents calls to the service. The message says what to change.

    The message is only for the app's log. Browsers get a message without the names of files and
    variables.
    """

    def to_wire(self) -> dict[str, dict[str, Any]]:
        """The protocol's JSON."""
        message = "This app is not set up to call Wattfare. Its log says what to change."
        return {"error": {"code": self.code, "message": message}}


class WattfareCurrentUserError(SetupError, RuntimeError):
    """This code has no current user. Outside of a request, pass a user explicitly."""


def invalid_request(message: str, status: int = 400) -> WattfareError:
    """An ``invalid_request`` error. The message says what is wrong."""
    return WattfareError(message, code="invalid_request", status=status)


def restore(cls: type[WattfareError], message: str) -> WattfareError:
    """Create an error without its attributes, which pickle sets next."""
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
#: All codes of the protocol, and the default status of each.
STATUS_BY_CODE = {
    **{code: cls.default_status for code, cls in _CLASSES.items()},
    "invalid_request": 400,
    "upstream": 502,
    "unknown": 500,
}
#: The codes of statuses, for a response without a known code.
_CODE_BY_STATUS = {
    401: "auth",
    429: "rate_limited",
    **dict.fromkeys((400, 403, 405, 409, 413, 415, 422), "invalid_request"),
    **dict.fromkeys((408, 502, 503, 504, 529), "upstream"),
}


#: The maximum length of an ``upstreamCode``, in characters.
MAX_UPSTREAM_CODE = 100
#: The maximum length of a ``limitedBy``, in characters.
MAX_LIMIT_NAME = 32
#: The maximum length of a ``manageUrl``, in characters.
MAX_MANAGE_URL = 2048
#: The maximum length of a request id, in characters.
MAX_REQUEST_ID = 128
#: The largest accepted amount, in USD, and the latest accepted time, in Unix seconds.
_MAX_USD = 10**12
_MAX_MOMENT = 10**11


class WireError(msgspec.Struct, frozen=True):
    """The parts of an ``error`` in a response. ``code`` is None if it is not text, because some
    providers send a number."""

    code: str | None = None
    message: str = ""
    upstream_code: str | None = None
    shortfall: Shortfall | None = None
    manage_url: str | None = None
    retry_after: float | None = None
    request_id: str | None = None

    def details(self) -> dict[str, Any]:
        """The parts except the code and the message, by the names of a WattfareError's
        arguments."""
        return {name: getattr(self, name) for name in _DETAILS}


_DETAILS = ("upstream_code", "shortfall", "manage_url", "retry_after", "request_id")


class _WireEnvelope(msgspec.Struct):
    error: dict[str, Any] | str


_decode_envelope = msgspec.json.Decoder(_WireEnvelope).decode


def make_error(
    code: str | None, message: str = "", *, status: int | None = None, **fields: Any
) -> WattfareError:
    """Create the error for this code, as an instance of its class. If the code is unknown, the
    status selects the class, and the message contains the code."""
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
    """Create the error for a response of the service. The body may be the protocol's JSON, a
    proxy's HTML page, or a part of one of these."""
    headers = headers or {}
    about: dict[str, Any] = {
        "status": status,
        "retry_after": retry_after_in(headers),
        "request_id": headers.get("x-request-id"),
    }
    error = wire_error(body)
    if error is not None:
        about = error.details() | {
            name: value for name, value in about.items() if value is not None
        }
        return make_error(error.code, error.message or f"Wattfare answered {status}.", **about)
    if 300 <= status < 400:
        message = (
            f"The service answered with a redirect ({status}), which is not followed. Check"
            " base_url."
        )
    elif status == 404:
        message = "There is no Wattfare service at this address (404). Check base_url."
    else:
        message = f"The service answered {status} without an error in JSON."
    failure = make_error(None, message, **about)
    failure.log_message = message  # the text is our own
    return failure


def wire_error(body: bytes) -> WireError | None:
    """The ``{"error": {"code", "message"}}`` in a body or in an event's data. None if there is no
    error, or if it is empty."""
    try:
        error = _decode_envelope(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(error, str):
        return WireError(message=error) if error else None
    return _parse_error(error)


def _parse_error(error: Mapping[Any, Any]) -> WireError | None:
    code, message, upstream = (error.get(name) for name in ("code", "message", "upstreamCode"))
    if not code and not message:
        return None
    return WireError(
        code if isinstance(code, str) else None,
        message if isinstance(message, str) else "",
        upstream[:MAX_UPSTREAM_CODE] if isinstance(upstream, str) and upstream else None,
        _shortfall(error),
        _manage_url(error.get("manageUrl")),
        _wait(error.get("retryAfter")),
        _request_id(error.get("requestId")),
    )


def _wait(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return _up_to_a_day(value)


def _request_id(value: object) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= MAX_REQUEST_ID and value.isprintable():
        return value
    return None


def _manage_url(value: object) -> str | None:
    """The URL, if an app can safely show it as a link. A ``javascript:`` URL would run code in the
    app's page."""
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
    """The shortfall in an error. Invalid parts are left out."""
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
    return Decimal(repr(value))  # the shortest repr of a float is what was sent


def _moment(value: object) -> datetime | None:
    """Convert Unix seconds to a datetime in UTC."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return datetime.fromtimestamp(value, UTC) if 0 < value < _MAX_MOMENT else None


#: The maximum of ``retry_after``, in seconds.
_A_DAY = 86_400.0


def retry_after_seconds(value: str | None) -> float | None:
    """Parse a ``Retry-After`` header: a number of seconds, or a date. Returns seconds, from 0 to
    one day; None for an invalid value."""
    seconds = _number(value or "")
    return _up_to_a_day(_seconds_until(value or "") if seconds is None else seconds)


def retry_after_in(headers: Mapping[str, str]) -> float | None:
    """The seconds to wait, from the headers of an answer. The names must be in lower case, unless
    the mapping ignores case."""
    milliseconds = _number(headers.get("retry-after-ms") or "")
    # OpenAI's own header is more exact.
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
    from email.utils import parsedate_to_datetime  # slow to import, and rarely needed

    try:
        return max(parsedate_to_datetime(date[:100]).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, OSError):
        return math.nan


def to_wattfare_error(error: BaseException | None) -> WattfareError | None:
    """Find the Wattfare error inside ``error``. Returns None if there is none.

    This searches causes, contexts and exception groups. It also searches the ``body`` or
    ``response`` of an HTTP error of openai, pydantic-ai or httpx. ``retry_after`` and
    ``request_id`` come from the error in a stream, or from the headers of the response.
    """
    for inner in unwrapped(error):
        found = inner if isinstance(inner, WattfareError) else _from_http_error(inner)
        if found is not None:
            if found is not inner:
                _add_headers(found, inner)
            return found
    return None


def is_budget_exceeded(error: BaseException | None) -> bool:
    """True if the budget does not cover the call."""
    return isinstance(to_wattfare_error(error), WattfareBudgetExceededError)


def is_not_connected(error: BaseException | None) -> bool:
    """True if the user must connect a budget, or connect it again."""
    return isinstance(to_wattfare_error(error), (WattfareNotConnectedError, WattfareFundingError))


def unwrapped(error: BaseException | None, *, suppressed: bool = False) -> Iterator[BaseException]:
    """Iterate over ``error``, its causes, its contexts and the members of exception groups.
    ``suppressed`` also includes errors that are hidden by ``from None``."""
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
    """Remove the tracebacks of ``error`` and of its causes. The frames of a library have the secret
    in local variables, which an error reporter may print."""
    for inner in unwrapped(error, suppressed=True):
        inner.__traceback__ = None


def _from_http_error(error: BaseException) -> WattfareError | None:
    """Find the Wattfare error in an AI library's HTTP error. It uses the attributes that these
    errors share, so it does not import a library."""
    response = _attribute(error, "response")
    status = _attribute(error, "status_code") or _attribute(response, "status_code")
    if not isinstance(status, int):
        status = None
    for body in (_attribute(error, "body"), _attribute(response, "_content")):
        wire = _wire_error_of(body)
        # Other services also have an `error` in their JSON, so accept only the protocol's codes.
        if wire is not None and wire.code != "unknown" and wire.code in STATUS_BY_CODE:
            return make_error(wire.code, wire.message, status=status, **wire.details())
    return None


def _add_headers(found: WattfareError, error: BaseException) -> None:
    """Set ``retry_after`` and ``request_id`` from the headers of a library's response. The
    library's error may have only the body, while its cause has the response. Only the first
    response with one of these headers is used, because another response in the chain may be from an
    earlier call.
    """
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
                found.request_id = _request_id(_header(headers, "x-request-id"))
        if found.retry_after is not None or found.request_id is not None:
            return


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
    # A property of another library's object may raise, and the caller is already handling an error.
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
        # The openai package has already taken the error out of its envelope.
        inner: object = body.get("error", body)  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
        if isinstance(inner, Mapping):
            return _parse_error(inner)  # pyright: ignore[reportUnknownArgumentType]
    return None
