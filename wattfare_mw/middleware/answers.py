"""Answers to requests to our paths, for adapters of frameworks with their own responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self, cast

import msgspec


class Answer(msgspec.Struct, frozen=True, gc=False):
    """An answer to a request to one of our paths.

    Attributes:
        status: the status code.
        headers: the headers. Names are in lower case, without duplicates.
        body: the whole body, or an iterator of its pieces. An async middleware returns an async
            iterator.
        close: a function to call after the last byte is sent, or if sending fails. It is async if
            the body is an async iterator. None if there is nothing to close.
    """

    status: int
    headers: dict[str, str]
    body: bytes | Iterator[bytes] | AsyncIterator[bytes]
    close: Callable[[], Any] | None = None


class AsyncAnswer(Answer, frozen=True, gc=False):
    """An :class:`Answer` of an async middleware. Use it in an ``async with`` block, and iterate
    over it with ``async for`` to get the pieces to send."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not isinstance(self.body, bytes):
            async for piece in cast("AsyncIterator[bytes]", self.body):
                yield piece
        elif self.body:
            yield self.body

    async def aclose(self) -> None:
        """Finish the answer. Call this after the last byte is sent, or if sending fails."""
        closing = None if self.close is None else self.close()
        if closing is not None:
            await closing
