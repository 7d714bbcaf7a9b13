"""The current user of a request, for ``WATTFARE = {"CURRENT_USER": True}``."""

# Django has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from django.http import FileResponse
from django.utils.asyncio import async_unsafe

from wattfare_mw.framework import CurrentRequest

_refuse_event_loops: Any = async_unsafe(
    "current_user is only for synchronous code. In an async view, use current_async_user."
)


class CurrentDjangoRequest(CurrentRequest):
    """A request that looks up its user in the thread of Django's synchronous views."""

    __slots__ = ()

    def user_id(self) -> str:
        return _refuse_event_loops(super().user_id)()

    async def user_id_async(self) -> str:
        return await sync_to_async(self.user_id)()


def end_with(response: Any, current: CurrentRequest) -> Any:
    """End the request with its response, which may be a stream."""
    # The code of the view has run completely, except for a stream.
    if not response.streaming or isinstance(response, FileResponse):
        current.end()
        return response
    content = response.streaming_content
    if response.is_async:
        response.streaming_content = current.iterate_async(content)
    else:
        response.streaming_content = current.iterate(content)
    close = response.close

    def close_and_end() -> None:
        try:
            close()
        finally:
            current.end()

    response.close = close_and_end
    return response
