"""Private: the objects that a client returns: users, grants, models and streams. Each has a sync
and an async class. Both use :mod:`.calls` and :mod:`.completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from . import calls
from .calls import Message, Payer
from .completions import Chunk, Completion, StreamReader, ToolCall
from .errors import WattfareError, WattfareNetworkError
from .openai_connections import OpenAIConnections
from .transport import AsyncHTTPResponse, HTTPResponse
from .types import MAX_WAIT_SECONDS, ConnectionStatus, OnLowBudget, TokenUsage, UserId, user_id_text

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

T = TypeVar("T")


class SyncClient(Protocol):
    """The part of a client that a handle uses."""

    openai: OpenAIConnections

    def fetch(self, call: calls.Call[T]) -> T:
        """Make the call, and return its complete result."""
        ...

    def disconnect(self, user_id: str) -> None:
        """Revoke this user's connection."""
        ...

    def open(self, call: calls.Call[Any]) -> HTTPResponse:
        """Make the call, and return the response with an unread body."""
        ...


class AsyncClient(Protocol):
    """:class:`SyncClient`, for asyncio."""

    openai: OpenAIConnections

    async def fetch(self, call: calls.Call[T]) -> T: ...
    async def disconnect(self, user_id: str) -> None: ...
    async def open(self, call: calls.Call[Any]) -> AsyncHTTPResponse: ...


C = TypeVar("C", SyncClient, AsyncClient)
C_co = TypeVar("C_co", SyncClient, AsyncClient, covariant=True)


class PaidBy(Protocol[C_co]):
    """The payer of a call, and the client that makes the call."""

    @property
    def client(self) -> C_co: ...

    def pays(self) -> Payer:
        """The payer of the next call. This is called for each call."""
        ...

    async def pays_async(self) -> Payer:
        """:meth:`pays`, in an event loop."""
        ...

    def of_this_request(self) -> PaidBy[C_co]:
        """The same payer. The current user becomes the user of this request."""
        ...


class FixedPayer(Generic[C]):
    """A payer that does not change."""

    __slots__ = ("client", "payer")

    def __init__(self, client: C, payer: Payer) -> None:
        self.client = client
        self.payer = payer

    def pays(self) -> Payer:
        return self.payer

    async def pays_async(self) -> Payer:
        return self.payer

    def of_this_request(self) -> Self:
        return self

    def __repr__(self) -> str:
        return repr(self.payer.value)


class _Handle(Generic[C]):
    def __init__(self, client: C, payer: Payer) -> None:
        self._paid_by: PaidBy[C] = FixedPayer(client, payer)

    def __deepcopy__(self, _memo: Any) -> Self:
        return self  # it is immutable, and connections cannot be copied

    def __repr__(self) -> str:
        # A traceback may show an object whose `__init__` failed.
        payer = getattr(getattr(self, "_paid_by", None), "payer", None)
        return f"{type(self).__name__}({payer and payer.value!r})"


class _PayingHandle(_Handle[C]):
    def openai(self, **options: Any) -> OpenAI:
        """Create a client of the openai package. This user or grant pays for its calls.

        It is an ``openai.OpenAI``, so any code or library that accepts one can use it. Its
        connections are shared with the other openai clients of this Wattfare client, and are closed
        with the Wattfare client. Each error is both an error of the openai package and a
        :class:`~wattfare_mw.WattfareError`. After a 429, it waits as long as the service says, but
        at most 30 seconds, and tries again. It never repeats a call that may have been billed.

        Args:
            options: ``timeout``, ``max_retries``, ``default_headers``, ``default_query`` or
                ``http_client`` of ``openai.OpenAI``.

        Raises:
            ImportError: the openai package is not installed.
            TypeError: an option is not supported.
        """
        from .integrations.openai import sync_client

        return sync_client(self._paid_by, options)

    def async_openai(self, **options: Any) -> AsyncOpenAI:
        """:meth:`openai`, for asyncio. One client can be used in several event loops."""
        from .integrations.openai import async_client

        return async_client(self._paid_by, options)


class _UserHandle(_PayingHandle[C]):
    """Attributes:
    id: the app's own id of the user, as text.
    """

    def __init__(self, client: C, user_id: UserId) -> None:
        self.id = user_id_text(user_id)
        super().__init__(client, calls.payer_of(self.id))


class _GrantHandle(_PayingHandle[C]):
    def __init__(self, client: C, grant_token: str) -> None:
        super().__init__(client, calls.grant_payer(grant_token))


class User(_UserHandle[SyncClient]):
    """A user of the app. The user's connected budget pays for the calls."""

    def status(self) -> ConnectionStatus:
        """Get the user's connection. If there is none, ``connected`` is False."""
        return self._paid_by.client.fetch(calls.status(self.id))

    def disconnect(self) -> None:
        """Revoke the user's connection, and stop its running calls. Without a connection, this does
        nothing."""
        self._paid_by.client.disconnect(self.id)

    def model(
        self, model_id: str, *, on_low_budget: OnLowBudget = "lower", wait: float = 0
    ) -> Model:
        """A handle for a model. This user pays for its calls. Sends no request.

        Args:
            model_id: the model's id at the service, such as ``"anthropic/claude-sonnet-4"``.
            on_low_budget: what to do if the budget does not cover the whole call. ``"lower"``
                lowers ``max_tokens``, so the answer may be cut short. ``"refuse"`` refuses the call
                with ``budget_exceeded``.
            wait: how long the call may wait for this user's other calls to release their reserved
                amounts, in seconds, at most 60.

        Raises:
            TypeError, ValueError: an argument is invalid.
        """
        return Model(self._paid_by, model_id, on_low_budget, wait)


class AsyncUser(_UserHandle[AsyncClient]):
    """:class:`User`, for asyncio."""

    async def status(self) -> ConnectionStatus:
        """See :meth:`User.status`."""
        return await self._paid_by.client.fetch(calls.status(self.id))

    async def disconnect(self) -> None:
        """See :meth:`User.disconnect`."""
        await self._paid_by.client.disconnect(self.id)

    def model(
        self, model_id: str, *, on_low_budget: OnLowBudget = "lower", wait: float = 0
    ) -> AsyncModel:
        """See :meth:`User.model`."""
        return AsyncModel(self._paid_by, model_id, on_low_budget, wait)


class Grant(_GrantHandle[SyncClient]):
    """A one-time grant."""

    def model(
        self, model_id: str, *, on_low_budget: OnLowBudget = "lower", wait: float = 0
    ) -> Model:
        """A handle for a model. The grant pays for its calls. See :meth:`User.model`."""
        return Model(self._paid_by, model_id, on_low_budget, wait)


class AsyncGrant(_GrantHandle[AsyncClient]):
    """:class:`Grant`, for asyncio."""

    def model(
        self, model_id: str, *, on_low_budget: OnLowBudget = "lower", wait: float = 0
    ) -> AsyncModel:
        """See :meth:`Grant.model`."""
        return AsyncModel(self._paid_by, model_id, on_low_budget, wait)


def paid_by(handle: _Handle[Any]) -> PaidBy[Any]:
    """The payer of a handle. For other modules of this package."""
    return handle._paid_by  # pyright: ignore[reportPrivateUsage]


class _ModelHandle(Generic[C]):
    """Attributes:
    id: the model's id.
    """

    def __init__(
        self,
        paid_by: PaidBy[C],
        model_id: str,
        on_low_budget: OnLowBudget = "lower",
        wait: float = 0,
    ) -> None:
        self._paid_by = paid_by
        if not isinstance(model_id, str) or not model_id:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError("a model id must be a string, such as 'anthropic/claude-sonnet-4'")
        if on_low_budget not in ("lower", "refuse"):
            raise ValueError("on_low_budget must be 'lower' or 'refuse'")
        if type(wait) not in (int, float) or not 0 <= wait <= MAX_WAIT_SECONDS:
            raise ValueError(f"wait must be a number of seconds from 0 to {MAX_WAIT_SECONDS}")
        self.id = model_id
        self._on_low_budget: OnLowBudget = on_low_budget
        self._wait = wait

    def _call(
        self,
        prompt: str | None,
        messages: Sequence[Message] | None,
        params: dict[str, Any],
        *,
        stream: bool,
    ) -> Callable[[Payer], calls.Call[Completion]]:
        return calls.chat_completion(
            self.id,
            prompt,
            messages,
            params,
            stream=stream,
            on_low_budget=self._on_low_budget,
            wait=self._wait,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, 'id', None)!r})"


class Model(_ModelHandle[SyncClient]):
    """A model. A user or a grant pays for its calls."""

    def generate(
        self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **params: Any
    ) -> Completion:
        """Call the model, and return its complete answer.

        Args:
            prompt: the user's message. Pass either this or ``messages``.
            messages: the conversation, in OpenAI's format.
            params: any parameter of an OpenAI-compatible API: ``max_tokens``, ``tools``, ….

        Raises:
            WattfareError: the call failed. An app should handle at least ``not_connected`` and
                ``budget_exceeded``.
        """
        call = self._call(prompt, messages, params, stream=False)
        paid_by = self._paid_by
        return paid_by.client.fetch(call(paid_by.pays()))

    def stream(
        self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **params: Any
    ) -> Stream:
        """Call the model, and return its answer as a stream. Use the stream in a ``with`` block, or
        close it.

        Raises:
            WattfareError: see :meth:`generate`. If the stream breaks off, reading it raises
                ``upstream``.
        """
        call = self._call(prompt, messages, params, stream=True)
        paid_by = self._paid_by
        return Stream(paid_by.client.open(call(paid_by.pays())))


class AsyncModel(_ModelHandle[AsyncClient]):
    """:class:`Model`, for asyncio."""

    async def generate(
        self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **params: Any
    ) -> Completion:
        """See :meth:`Model.generate`."""
        call = self._call(prompt, messages, params, stream=False)
        paid_by = self._paid_by
        return await paid_by.client.fetch(call(await paid_by.pays_async()))

    def stream(
        self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **params: Any
    ) -> AsyncStream:
        """See :meth:`Model.stream`. The call is made when the stream is entered or first read."""
        call = self._call(prompt, messages, params, stream=True)
        # The stream may be read in the context of another request.
        paid_by = self._paid_by.of_this_request()

        async def open_() -> AsyncHTTPResponse:
            return await paid_by.client.open(call(await paid_by.pays_async()))

        return AsyncStream(open_)


class _StreamState:
    def __init__(self) -> None:
        self._reader = StreamReader()

    @property
    def text(self) -> str:
        """The text received so far."""
        return self._reader.text

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The complete tool calls received so far."""
        return self._reader.tool_calls

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended. None until it has ended."""
        return self._reader.finish_reason

    @property
    def usage(self) -> TokenUsage | None:
        """The tokens of the call. None until the end of the stream."""
        return self._reader.usage

    @property
    def cost_usd(self) -> Decimal | None:
        """The billed cost, in USD. None until the end of the stream."""
        return self._reader.cost_usd


class Stream(_StreamState):
    """A streamed answer. Iterate over it to get each :class:`Chunk`, or over ``text_stream`` to get
    only the text."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self._answer = answer
        self._chunks = self._iterate()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    @property
    def text_stream(self) -> Iterator[str]:
        """The text only, piece by piece."""
        return (chunk.text for chunk in self if chunk.text)

    def close(self) -> None:
        """Close the connection. This stops a model that is still answering."""
        self._chunks.close()
        self._answer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _iterate(self) -> Generator[Chunk, None, None]:
        reader = self._reader
        try:
            try:
                while data := self._answer.read_some():
                    yield from reader.feed(data)
                    if reader.done:
                        return
            except WattfareNetworkError as error:
                raise reader.broken(error) from error
            yield from reader.end()
        except WattfareError as error:
            _add_request_id(error, self._answer)
            raise
        finally:
            self._answer.close()


class AsyncStream(_StreamState):
    """:class:`Stream`, for asyncio."""

    def __init__(self, open_: Callable[[], Any]) -> None:
        super().__init__()
        self._open = open_
        self._answer: Any = None
        self._chunks = self._iterate()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    @property
    def text_stream(self) -> AsyncIterator[str]:
        """The text only, piece by piece."""
        return (chunk.text async for chunk in self if chunk.text)

    async def aclose(self) -> None:
        """Close the connection. This stops a model that is still answering."""
        await self._chunks.aclose()
        if self._answer is not None:
            await self._answer.close()

    async def __aenter__(self) -> Self:
        await self._opened()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _opened(self) -> Any:
        if self._answer is None:
            self._answer = await self._open()
        return self._answer

    async def _iterate(self) -> AsyncGenerator[Chunk, None]:
        reader = self._reader
        answer = await self._opened()
        try:
            try:
                while data := await answer.read_some():
                    for chunk in reader.feed(data):
                        yield chunk
                    if reader.done:
                        return
            except WattfareNetworkError as error:
                raise reader.broken(error) from error
            for chunk in reader.end():
                yield chunk
        except WattfareError as error:
            _add_request_id(error, answer)
            raise
        finally:
            await answer.close()


def _add_request_id(error: WattfareError, answer: Any) -> None:
    if error.request_id is None:
        error.request_id = answer.headers.get("x-request-id")
