"""HTTP requests to the upstream, with their limits. A status other than 200 becomes a
:class:`Refusal`."""

from __future__ import annotations

import asyncio

import msgspec

from ...calls import USER_AGENT
from ...errors import WattfareError, WattfareNetworkError
from ...transport import AsyncHTTPResponse, AsyncTransport, HTTPRequest, async_transport
from ..errors import upstream_failed
from . import upstream_errors
from .catalog import NoListError
from .credential import Credential

CONNECT_SECONDS = 10.0
#: How long to wait for data from the upstream, in seconds. A model that thinks can take minutes.
IDLE_SECONDS = 600.0
#: The maximum size of an error, and of the list of models, in bytes.
MAX_ERROR_BYTES = 2**20
MAX_LIST_BYTES = 16 * 2**20
#: The limits for an answer that is not a completion, in seconds: for each wait, and in total.
ASK_IDLE_SECONDS = 20.0
ASK_SECONDS = 60.0


class Refusal(msgspec.Struct, frozen=True):
    """An answer whose status is not 200. ``text`` is its body, and ``error`` is what it means."""

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

    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        request_id: str | None,
        idle: float = IDLE_SECONDS,
        credential: Credential | None = None,
        *,
        stream: bool = False,
    ) -> AsyncHTTPResponse | Refusal:
        """Send a request. Returns the answer if its status is 200 or 201, or else a
        :class:`Refusal`. Some frameworks answer a POST with 201.

        Args:
            credential: a payer's key, or None for the operator's key.
            stream: True if the answer may be a stream. Some gateways send one if they may:
                diegosouzapw/OmniRoute#6740.

        Raises:
            WattfareError: ``upstream``; there is no answer.
        """
        headers = {
            "accept-encoding": "identity",
            "accept": "application/json, text/event-stream" if stream else "application/json",
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
            if answer.status in (200, 201):
                return answer
            try:
                text = await answer.read(MAX_ERROR_BYTES)
            finally:
                await answer.close()
        except WattfareNetworkError as error:
            raise upstream_errors.unreachable(error) from error.__cause__
        failure = upstream_errors.failure(answer.status, text, answer.headers, credential)
        return Refusal(answer.status, text, failure)

    async def ask(
        self,
        method: str,
        path: str,
        most: int,
        body: bytes | None = None,
        credential: Credential | None = None,
    ) -> bytes | Refusal:
        """Send a request with a short answer, such as a list or a record. Returns the whole answer
        if its status is 200, or else a :class:`Refusal`.

        Args:
            most: the maximum size of the answer, in bytes.
            credential: a payer's key, or None for the operator's key.

        Raises:
            WattfareError: ``upstream``; there is no answer, or it breaks off, is too long, or takes
                too long.
        """
        try:
            # Limit the total time, because an upstream could send a byte now and then forever.
            async with asyncio.timeout(ASK_SECONDS):
                answer = await self.exchange(method, path, body, None, ASK_IDLE_SECONDS, credential)
                if isinstance(answer, Refusal):
                    return answer
                try:
                    return await answer.read(most)
                except WattfareNetworkError as error:
                    raise upstream_errors.unreachable(error) from error.__cause__
                finally:
                    await answer.close()
        except TimeoutError:
            raise upstream_failed("The upstream takes too long to answer.") from None

    async def list_models(self, credential: Credential | None = None) -> bytes:
        """The list of models as received.

        Raises:
            NoListError: the upstream has no list, or none for this key.
            WattfareError: the list cannot be read.
        """
        answer = await self.ask("GET", "/models", MAX_LIST_BYTES, credential=credential)
        if not isinstance(answer, Refusal):
            return answer
        if upstream_errors.means_no_list(answer.status, answer.error):
            raise NoListError from answer.error
        raise answer.error

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()
