"""Private: the calls of the service's API as values. A call knows how to write its request and how
to read its answer. No I/O."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from . import sse
from .completions import Completion, not_the_protocol, read_completion
from .errors import (
    WattfareAuthError,
    WattfareError,
    WattfareGrantError,
    WattfareNetworkError,
    error_from_answer,
)
from .flow import Flow
from .money import Number
from .retries import retry_delay
from .transport import HTTPRequest, Secret, header_key
from .types import (
    API_PREFIX,
    GRANT_HEADER,
    LOW_BUDGET_HEADER,
    USER_HEADER,
    WAIT_HEADER,
    ConnectionStatus,
    CreatedSession,
    OnLowBudget,
    RequestLimit,
    SessionRequest,
    UserId,
    check_user_id,
    decode,
    encode,
    readable_label,
    user_id_text,
)

T = TypeVar("T")

DEFAULT_BASE_URL = "https://wattfare.com"
USER_AGENT = "wattfare-mw-python"
# The characters that need no escape in a header: 0x21-0x7E, except "%", which starts an escape.
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
#: Printable ASCII that must be escaped.
_ESCAPED = frozenset(" %")

LimitLike = Number | RequestLimit | None
Message = Mapping[str, Any]


class Timeout(msgspec.Struct, frozen=True):
    """How long to wait, in seconds. None means no limit.

    Args:
        connect: for a new connection.
        read: for an answer to ``status``, ``create_session`` and ``models``.
        inference: for each pause in the answer to an inference call. The pause before the first
            token can last minutes. The whole answer has no time limit.
    """

    connect: float | None = 5.0
    read: float | None = 30.0
    inference: float | None = 600.0


class Call(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A call, and how to read its answer.

    Attributes:
        path: the path, relative to ``/api/v1``.
        read: converts the status and the body of a 2xx answer to the result.
        repeatable: True if a second attempt bills nothing.
        inference: True for an inference call, which may take minutes.
        credential: the credential to send instead of the secret key.
    """

    method: str
    path: str
    read: Callable[[int, bytes], T]
    headers: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    body: bytes | None = None
    repeatable: bool = False
    inference: bool = False
    credential: str | None = None


# -- the payer


class Payer(msgspec.Struct, frozen=True, gc=False):
    """Who pays for a call: a header and its value."""

    header: str
    value: str


def payer_of(user_id: str) -> Payer:
    """The payer for a user id that is already checked."""
    if not (user_id.isascii() and user_id.isprintable() and _ESCAPED.isdisjoint(user_id)):
        user_id = quote(user_id, safe=_HEADER_SAFE)
    return Payer(USER_HEADER, user_id)


def grant_payer(grant_token: str) -> Payer:
    """The payer for a one-time grant.

    Raises:
        WattfareGrantError: the token is invalid.
    """
    if not isinstance(grant_token, str) or not grant_token or not _visible(grant_token):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WattfareGrantError("This is not a grant token: a grant token is visible ASCII.")
    return Payer(GRANT_HEADER, Secret(grant_token))


def _visible(text: str) -> bool:
    return text.isascii() and all(0x21 <= ord(char) <= 0x7E for char in text)


# -- the calls


def create_session(
    user_id: UserId,
    request_limit: LimitLike | SessionRequest = None,
    account_label: str | None = None,
) -> Call[CreatedSession]:
    """Create a session token that asks for this cap, for the user's browser."""
    body: dict[str, Any] = {"appUserId": user_id_text(user_id)}
    limit = session_request(request_limit).request_limit
    if limit is not None:
        body["requestLimit"] = limit
    if account_label is not None:
        body["accountLabel"] = account_label
    return Call(
        "POST",
        "/sessions",
        _reads(CreatedSession),
        headers={"content-type": "application/json"},
        body=encode(body),
        repeatable=True,
    )


def session_request(request_limit: object) -> SessionRequest:
    """The cap that an app asks for, as the protocol's object.

    Raises:
        WattfareError: ``invalid_request``; it is not a valid cap.
    """
    if isinstance(request_limit, SessionRequest):
        request_limit = request_limit.request_limit
    if request_limit is None or isinstance(request_limit, RequestLimit):
        return SessionRequest(request_limit)
    return SessionRequest(RequestLimit(request_limit))  # type: ignore[arg-type]  # it checks


def revoke(session_token: str) -> Call[None]:
    """Revoke the connection of the user of this session token."""
    return Call(
        "DELETE",
        "/connections",
        _nothing,
        repeatable=True,
        credential=session_token,
    )


def status(user_id: str) -> Call[ConnectionStatus]:
    """The user's connection to this app."""
    user = quote(check_user_id(user_id), safe="")
    return Call("GET", f"/status?appUserId={user}", _reads(ConnectionStatus), repeatable=True)


def models() -> Call[bytes]:
    """The service's list of models."""
    return Call("GET", "/models", _as_it_is, repeatable=True)


def chat_completion(
    model: str,
    prompt: str | None,
    messages: Sequence[Message] | None,
    params: Mapping[str, Any],
    *,
    stream: bool,
    on_low_budget: OnLowBudget = "lower",
    wait: float = 0,
) -> Callable[[Payer], Call[Completion]]:
    """A call of ``model`` with a prompt or with messages. Returns a function that takes the payer.

    Raises:
        TypeError: not exactly one of ``prompt`` and ``messages`` is passed, ``stream`` is passed,
            or a parameter cannot be converted to JSON.
    """
    if (prompt is None) == (messages is None):
        raise TypeError("pass exactly one of a prompt and messages=")
    if "stream" in params:
        raise TypeError("stream= is not a parameter: call generate() or stream()")
    if messages is None:
        messages = [{"role": "user", "content": prompt}]
    body: dict[str, Any] = {"model": model, "messages": messages, **params}
    if stream:
        body["stream"] = True
        # Without this option, the stream would not report its cost.
        body.setdefault("stream_options", {"include_usage": True})
    headers = {
        "content-type": "application/json",
        "accept": sse.CONTENT_TYPE if stream else "application/json",
    }
    if on_low_budget != "lower":
        headers[LOW_BUDGET_HEADER] = on_low_budget
    if wait:
        headers[WAIT_HEADER] = f"{wait:g}"
    return partial(relayed_completion, body=encode(body), headers=headers)


def relayed_completion(payer: Payer, body: bytes, headers: Mapping[str, str]) -> Call[Completion]:
    """An inference call with an existing body and existing headers."""
    return Call(
        "POST",
        "/chat/completions",
        read_completion,
        headers={**headers, payer.header: payer.value},
        body=body,
        inference=True,
    )


def _reads(shape: type[T]) -> Callable[[int, bytes], T]:
    def read(status: int, body: bytes) -> T:
        try:
            return decode(shape, body)
        except msgspec.MsgspecError as error:
            raise not_the_protocol(status, f"a {shape.__name__}", error) from None

    return read


def _nothing(_status: int, _body: bytes) -> None:
    return None


def _as_it_is(_status: int, body: bytes) -> bytes:
    return body


# -- the commands of a flow


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send this request. The result is the answer with an unread body."""

    request: HTTPRequest


class Read(msgspec.Struct, frozen=True, gc=False):
    """Read the whole body of this answer. The result is the bytes."""

    answer: Any


class Sleep(msgspec.Struct, frozen=True, gc=False):
    """Wait this many seconds."""

    seconds: float


#: The headers of every request.
_ALWAYS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": USER_AGENT,
}


class _Known:
    """Facts that a client has learned about its service."""

    #: False if the service refuses account labels.
    labels = True


class Caller:
    """The flows of an app's calls with its secret key.

    Raises:
        WattfareAuthError: the key is not a secret key.
        ValueError: the URL is invalid.
    """

    def __init__(
        self, secret_key: str | None, base_url: str, timeout: Timeout, max_retries: int
    ) -> None:
        if not isinstance(secret_key, str) or not secret_key.strip().startswith("sk_"):
            raise WattfareAuthError(_no_secret_key(secret_key))
        key = header_key(secret_key)
        if key is None:
            raise WattfareAuthError(
                "The secret key cannot be sent: it has a space, a line end or another character"
                " that is not visible ASCII. Copy it again into secret_key= or"
                " WATTFARE_SECRET_KEY."
            )
        self.base_url = _check_url(base_url)
        self._api_url = self.base_url + API_PREFIX
        parts = urlsplit(self.base_url)
        self._service = f"{parts.scheme}://{parts.netloc}"
        self._advice = _advice(self.base_url, parts.hostname or "")
        self.timeout = timeout
        self.max_retries = max_retries
        self.secret_key = key
        self._authorization = Secret(f"Bearer {key}")
        self._in_request = False
        self._known = _Known()

    def in_request(self) -> Self:
        """A copy for calls inside a request to the app. Such a call must not block a worker of the
        app for long, so it is retried only once and soon. See :func:`.retries.retry_delay`."""
        copied = copy.copy(self)
        copied._in_request = True
        return copied

    def named(self, error: WattfareNetworkError) -> WattfareNetworkError:
        """Add the service's address to the message, if the service could not be reached."""
        return error.named(self._service, self._advice)

    def request(self, call: Call[Any]) -> HTTPRequest:
        """The HTTP request of this call."""
        authorization = self._authorization
        if call.credential is not None:
            authorization = Secret(f"Bearer {call.credential}")
        return HTTPRequest(
            call.method,
            self._api_url + call.path,
            {**_ALWAYS, **call.headers, "authorization": authorization},
            call.body,
            self.timeout.connect,
            self.timeout.inference if call.inference else self.timeout.read,
        )

    def fetch(self, call: Call[T]) -> Flow[T]:
        """Make the call, and read its answer.

        Raises:
            WattfareError: the call failed.
        """
        status, body = yield from self._attempts(call, keep_open=False)
        return call.read(status, body)

    def create_session(
        self,
        user_id: UserId,
        request_limit: LimitLike | SessionRequest = None,
        account_label: str | None = None,
    ) -> Flow[CreatedSession]:
        """Create a session token, without the account label if the service refuses labels."""
        if account_label is not None:
            account_label = readable_label(account_label)
        if account_label is not None and self._known.labels:
            try:
                return (
                    yield from self.fetch(create_session(user_id, request_limit, account_label))
                )
            except WattfareError as error:
                if error.status not in (400, 422):
                    raise
            created = yield from self.fetch(create_session(user_id, request_limit))
            # The service refused the label.
            self._known.labels = False
            return created
        return (yield from self.fetch(create_session(user_id, request_limit)))

    def disconnect(self, user_id: str) -> Flow[None]:
        """Revoke a user's connection. This needs a session token of the user, so it creates one."""
        session = yield from self.fetch(create_session(user_id))
        yield from self.fetch(revoke(session.token))

    def open(self, call: Call[Any]) -> Flow[Any]:
        """Make the call. The result is a successful answer with an unread body.

        Raises:
            WattfareError: the answer is an error, or there is no answer.
        """
        return self._attempts(call, keep_open=True)

    def _attempts(self, call: Call[Any], *, keep_open: bool) -> Flow[Any]:
        request = self.request(call)
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                answer = yield Send(request)
                success = 200 <= answer.status < 300
                if success and keep_open:
                    return answer
                body = yield Read(answer)
                if success:
                    return answer.status, body
                # The answer may repeat the refused key, and the app may send our error to a
                # browser.
                for secret in filter(None, (self.secret_key, call.credential)):
                    body = body.replace(secret.encode(), "…".encode())
                failure = error_from_answer(answer.status, body, answer.headers)
                if isinstance(failure, WattfareAuthError):
                    # Only a traceback shows a note. A browser gets the message.
                    failure.add_note(
                        f"The key was sent to {self._service}. If this is not the service that"
                        " issued the key, correct WATTFARE_SECRET_KEY or WATTFARE_BASE_URL. To"
                        " check both, type: wattfare doctor"
                    )
            except WattfareNetworkError as error:
                failure = self.named(error)
            delay = None
            if attempt < self.max_retries:
                delay = retry_delay(
                    failure,
                    attempt,
                    repeatable=call.repeatable,
                    in_request=self._in_request,
                    took=time.monotonic() - began,
                )
            if delay is None:
                raise failure
            yield Sleep(delay)
            attempt += 1


def _advice(base_url: str, host: str) -> str:
    """The advice in the error for a service that cannot be reached."""
    if base_url == DEFAULT_BASE_URL:
        return (
            "To use your own service, set WATTFARE_BASE_URL, for example to http://127.0.0.1:8787."
        )
    if host in ("localhost", "127.0.0.1", "::1"):
        return "Check WATTFARE_BASE_URL, and that the service runs: `wattfare dev` starts one."
    return "Check WATTFARE_BASE_URL."


_IN_A_TEST = (
    " In a test, use the fixture `wattfare`. If the app is imported before the test, also set"
    " `wattfare_environment = true` in pytest's settings."
)


def _in_pytest() -> bool:
    return "PYTEST_VERSION" in os.environ


def _no_secret_key(given: object) -> str:
    """The error message for a value that is not a secret key. It never contains the value."""
    if given is None or given == "":
        return (
            "There is no secret key. Set WATTFARE_SECRET_KEY, or pass secret_key=. For a test key,"
            " type `wattfare dev` and copy the line"
            f" `export WATTFARE_SECRET_KEY=sk_test_…`.{_IN_A_TEST if _in_pytest() else ''}"
        )
    if isinstance(given, str) and given.strip().startswith("pk_"):
        return (
            "This is a publishable key, which begins with 'pk_' and is for the browser. Set"
            " WATTFARE_SECRET_KEY to the secret key, which begins with 'sk_'."
        )
    return (
        "This is not a secret key: a secret key begins with 'sk_'. Check WATTFARE_SECRET_KEY, or"
        " secret_key=."
    )


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # an invalid port or IPv6 address
        usable = False
    if not usable or not _visible(url):
        raise ValueError(
            "base_url (or WATTFARE_BASE_URL) must be the service's address, with http:// or"
            " https://, such as http://127.0.0.1:8787"
        )
    if any(mark in url for mark in "?#@"):
        raise ValueError(
            "base_url (or WATTFARE_BASE_URL) must not have a query, a fragment or credentials"
        )
    return url.rstrip("/").removesuffix(API_PREFIX)
