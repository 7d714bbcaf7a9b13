"""Records the calls that an app makes during a test."""

from __future__ import annotations

import json
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import jwt
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import money
from ..error_responses import error_response
from ..errors import WattfareError, wire_error
from ..headers import Headers
from ..service.api.parameters import payer_in_headers
from ..service.api.routes import COMPLETIONS
from ..types import API_PREFIX, GRANT_HEADER, Json, fields_of
from .scripts import FailOn, Fault, Script

if TYPE_CHECKING:
    from .servers import Server

#: The kinds of requests from an app's backend, by method and path.
_KINDS: dict[tuple[str, str], FailOn] = {
    ("POST", COMPLETIONS): "model",
    ("POST", f"{API_PREFIX}/sessions"): "token",
    ("GET", f"{API_PREFIX}/status"): "status",
    ("DELETE", f"{API_PREFIX}/connections"): "disconnect",
    ("GET", f"{API_PREFIX}/models"): "models",
}
#: The recorded headers besides those that begin with ``x-wattfare-``.
_KEPT = frozenset({"idempotency-key", "x-request-id"})
#: The start of an event with an error.
_ERROR_EVENT = b'data: {"error"'

#: The record of the current task's call.
CURRENT: ContextVar[Record | None] = ContextVar("wattfare_call", default=None)


@dataclass(frozen=True, repr=False)
class RecordedCall:
    """An inference call that the service has received, in its current state.

    Attributes:
        user: the app's id of the user who pays. None for a grant, or if the call has no payer.
        model: the requested model. Empty if the request is invalid.
        messages: the messages of the prompt.
        params: the other fields of the request, such as ``max_tokens`` and ``tools``.
        stream: True if the app asked for a stream.
        headers: Wattfare's headers of the request, without credentials. The names are in lower
            case.
        status: the HTTP status. None until the response begins.
        error: the code of the error that refused or ended the call, such as ``"budget_exceeded"``.
            None if there was no error.
        text: the text of the answer so far.
        prompt_tokens: the billed tokens of the prompt.
        completion_tokens: the billed tokens of the answer.
        cost: the billed cost, in USD.
        reserved: the reserved amount, in USD. 0 once the call is settled.
        request_id: the service's id of the call.
    """

    user: str | None
    model: str
    messages: list[dict[str, Any]]
    params: dict[str, Any]
    stream: bool
    headers: dict[str, str]
    status: int | None
    error: str | None
    text: str
    prompt_tokens: int
    completion_tokens: int
    cost: Decimal
    reserved: Decimal
    request_id: str | None

    def __repr__(self) -> str:
        outcome = self.error or f"{self.cost} USD"
        return f"<call of {self.user!r} to {self.model!r}: {self.status}, {outcome}>"


class Record:
    """The record of a call. The service's thread updates it."""

    def __init__(self, script: Script, headers: Headers, scope: Scope) -> None:
        self.script = script
        self.connection: Any = scope.get("wattfare.connection")
        self.body = bytearray()
        self.answer = bytearray()
        self.text = ""
        self.status: int | None = None
        self.error: str | None = None
        #: True if the connection must be closed when the call is settled.
        self.is_dropped = False
        self.request_id: str | None = None
        self.reserved = self.billed = self.prompt_tokens = self.completion_tokens = 0
        try:
            self.user, _ = payer_in_headers(headers)
        except WattfareError:
            self.user = None
        self.headers = {
            name: value
            for name, value in (
                (name.decode("latin-1").lower(), value.decode("latin-1"))
                for name, value in scope["headers"]
            )
            if (name.startswith("x-wattfare-") and name != GRANT_HEADER) or name in _KEPT
        }

    def snapshot(self) -> RecordedCall:
        """The current state of the call."""
        try:
            decoded: Json = json.loads(bytes(self.body))
        except ValueError:
            decoded = None
        fields = fields_of(decoded)
        return RecordedCall(
            user=self.user,
            model=str(fields.pop("model", "")),
            messages=fields.pop("messages", []),
            stream=bool(fields.pop("stream", False)),
            params=fields,
            headers=dict(self.headers),
            status=self.status,
            error=self.error,
            text=self.text,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cost=money.usd(self.billed),
            reserved=money.usd(self.reserved),
            request_id=self.request_id,
        )

    async def receive_from(self, receive: Receive) -> Message:
        """Receive a message and record the body."""
        message = await receive()
        if message["type"] == "http.request":
            self.body += message.get("body", b"")
        return message

    def note(self, message: Message) -> None:
        """Record a message of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            for name, value in message["headers"]:
                if name == b"x-request-id":
                    self.request_id = value.decode("latin-1")
            return
        block: bytes = message.get("body", b"")
        if self.status == 200:
            if block.startswith(_ERROR_EVENT):
                self._note_error(block[6:].split(b"\n", 1)[0])
            return
        self.answer += block
        if not message.get("more_body", False):
            self._note_error(bytes(self.answer))

    def _note_error(self, body: bytes) -> None:
        error = wire_error(body)
        self.error = None if error is None else error.code


class Recorder:
    """ASGI middleware around the service. It records each inference call and simulates network
    failures."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        headers = Headers.of_scope(scope["headers"])
        tested = self._server.app_of(headers)
        # Each test has its own client address, so tests do not share rate limits.
        scope["client"] = (self._server.client_address, 0)
        on = _KINDS.get((scope["method"], scope["path"]))
        if on == "disconnect":
            tested = self._server.app_with_id(_app_of_session(headers))
        if tested is None or on is None:
            await self._app(scope, receive, send)
            return
        if on != "model":
            fault = tested.script.take_fault(lambda fault: fault.on == on)
            if fault is None:
                await self._app(scope, receive, send)
            elif fault.make_error is None:
                scope["wattfare.connection"].close()
            else:
                await _refuse(send, fault.make_error())
            return
        record = Record(tested.script, headers, scope)
        tested.records.append(record)
        if tested.script.take_fault(lambda fault: fault == Fault(None)) is not None:
            while (await record.receive_from(receive)).get("more_body", False):
                pass
            await _drop(record, receive)
            return
        await self._server.keep_lease()

        async def note_and_send(message: Message) -> None:
            record.note(message)
            await send(message)

        token = CURRENT.set(record)
        try:
            await self._app(scope, lambda: record.receive_from(receive), note_and_send)
        finally:
            CURRENT.reset(token)
            if record.is_dropped:
                await _drop(record, receive)


def _app_of_session(headers: Headers) -> str:
    """The id of the app in a session token, with which the client revokes a connection. The token
    is not checked here: the service checks it later."""
    token = (headers.first("authorization") or "").rpartition(" ")[2]
    try:
        return str(jwt.decode(token, options={"verify_signature": False}).get("app"))
    except jwt.InvalidTokenError:
        return ""


async def _refuse(send: Send, error: WattfareError) -> None:
    """Answer with this error, without calling the service."""
    answer = error_response(error)
    headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _drop(record: Record, receive: Receive) -> None:
    """Close the connection before the end of the answer."""
    record.error = "network"
    record.connection.close()
    while (await receive())["type"] != "http.disconnect":
        pass
