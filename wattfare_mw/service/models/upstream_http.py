"""HTTP requests to the upstream, with their limits. A status other than 200 becomes an error."""

from __future__ import annotations

import asyncio

import msgspec

from ...calls import USER_AGENT
from ...errors import WattfareError, WattfareNetworkError
from ...transport import AsyncHTTPResponse, AsyncTransport, HTTPRequest, async_transport
from . import upstream_answers
from .catalog import NoListError
from .credential import Credential

CONNECT_SECONDS = 10.0
#: How long to wait for data from the upstream, in seconds. A model that thinks can take minutes.
IDLE_SECONDS = 600.0
#: The maximum size of an error, and of the list of models, in bytes.
MAX_ERROR_BYTES = 2**20
MAX_LIST_BYTES = 16 * 2**20
#: The limits for the list of models and for records, in seconds: for each wait, and in total.
LIST_IDLE_SECONDS = 20.0
LIST_SECONDS = 60.0
_LIST = "/models"


class Refusal(msgspec.Struct, frozen=True):
    """An answer with another status than 200. ``text`` is its body, and ``error`` its meaning."""

    status: int
    text: bytes
    error: WattfareError

    def __repr__(self) -> str:
        return f"Refusal({self.status})"  # an error may repeat the prompt


class UpstreamHTTP:
    """The HTTP side of an upstream.

    Args:
        base_url: the URL before ``/chat/completions`` and ``/models``.
        operator: the credential of calls without a payer's key.
        transport: the HTTP transport. By default, the upstream creates one.
    """

    def __init__(
        self, base_url: str, operator: Credential, transport: AsyncTransport | None = None
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.operator = operator
        self._transport = transport or async_transport(None)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        request_id: str | None,
        idle: float = IDLE_SECONDS,
        credential: Credential | None = None,
    ) -> AsyncHTTPResponse:
        """Send a request. Returns an answer with status 200, or raises the error for any other."""
        answer = await self.exchange(method, path, body, request_id, idle, credential)
        if isinstance(answer, Refusal):
            raise answer.error
        return answer

    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        request_id: str | None,
        idle: float = IDLE_SECONDS,
        credential: Credential | None = None,
    ) -> AsyncHTTPResponse | Refusal:
        """Send a request. Returns an answer with status 200, or the error for any other.

        Args:
            credential: a payer's key; None: the operator's.

        Raises:
            WattfareError: ``upstream``; there is no answer.
        """
        headers = {
            "accept-encoding": "identity",
            "accept": "application/json, text/event-stream",
            "user-agent": USER_AGENT,
        }
        if body is not None:
            headers["content-type"] = "application/json"
        credential = credential or self.operator
        if credential.authorization is not None:
            headers["authorization"] = credential.authorization
        if request_id is not None:
            headers["x-request-id"] = request_id
        request = HTTPRequest(method, self.base_url + path, headers, body, CONNECT_SECONDS, idle)
        try:
            answer = await self._transport.send(request)
            if answer.status == 200:
                return answer
            try:
                text = await answer.read(MAX_ERROR_BYTES)
            finally:
                await answer.close()
        except WattfareNetworkError as error:
            raise upstream_answers.unreachable(error) from error.__cause__
        failure = upstream_answers.failure(answer.status, text, answer.headers, credential)
        if path == _LIST and upstream_answers.is_no_list(answer.status, failure):
            raise NoListError from failure
        return Refusal(answer.status, text, failure)

    async def list_models(self, credential: Credential | None = None) -> bytes:
        """The list of models as received.

        Raises:
            NoListError: the upstream has no list, or none for this key.
            WattfareError: the list cannot be read.
        """
        return await self.get(_LIST, MAX_LIST_BYTES, credential)

    async def get(self, path: str, most: int, credential: Credential | None = None) -> bytes:
        """Get a whole answer.

        Args:
            most: the most bytes.

        Raises:
            WattfareError: the upstream refuses, fails, or takes too long.
        """
        try:
            # Limit the total time, because an upstream could send a byte now and then forever.
            async with asyncio.timeout(LIST_SECONDS):
                answer = await self.send("GET", path, None, None, LIST_IDLE_SECONDS, credential)
                return await read_whole(answer, most)
        except TimeoutError:
            raise upstream_answers.failed("The upstream takes too long to answer.") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()


async def read_whole(answer: AsyncHTTPResponse, most: int) -> bytes:
    """Read the whole body of an answer, and close it.

    Args:
        most: the most bytes.

    Raises:
        WattfareError: ``upstream``; it broke off or is too long.
    """
    try:
        return await answer.read(most)
    except WattfareNetworkError as error:
        raise upstream_answers.unreachable(error) from error.__cause__
    finally:
        await answer.close()
