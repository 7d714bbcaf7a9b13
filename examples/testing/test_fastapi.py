"""Tests of an app, with FastAPI and pytest-asyncio. Run them: pytest examples/testing"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from wattfare_mw import AsyncWattfare, WattfareError
from wattfare_mw.testing import WattfareService


def create_app(wf: AsyncWattfare) -> FastAPI:
    app = FastAPI()

    @app.get("/story")
    async def story(user: str) -> StreamingResponse:
        async def text() -> AsyncIterator[str]:
            try:
                async with wf.user(user).model("openai/gpt-5").stream("A story.") as stream:
                    async for piece in stream.text_stream:
                        yield piece
            except WattfareError as error:
                yield f"[{error.code}]"

        return StreamingResponse(text())

    return app


@pytest.mark.asyncio
async def test_broken_stream_ends_with_an_error(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.reply("Once upon a time there was a bill.")
    wattfare.cut_stream(after=3)

    async with wattfare.async_client() as wf:
        transport = httpx.ASGITransport(create_app(wf))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            response = await client.get("/story", params={"user": "ann"})

    assert response.text == "Once upon a [upstream]"
    (call,) = wattfare.calls
    assert (call.user, call.stream, call.completion_tokens) == ("ann", True, 3)
    assert call.cost == wattfare.billed("ann")
