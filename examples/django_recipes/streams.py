"""Views that stream an answer, under WSGI and under ASGI."""

from collections.abc import AsyncIterator, Iterator

from django.http import StreamingHttpResponse
from django.urls import path
from wattfare_django import WattfareRequest


def story(request: WattfareRequest) -> StreamingHttpResponse:
    stream = request.wattfare.model("wattfare/echo").stream(request.GET["about"])

    def text() -> Iterator[str]:
        with stream:  # closing the stream stops the model
            yield from stream.text_stream

    return StreamingHttpResponse(text(), content_type="text/plain")


async def async_story(request: WattfareRequest) -> StreamingHttpResponse:
    user = await request.awattfare()
    stream = user.model("wattfare/echo").stream(request.GET["about"])

    async def text() -> AsyncIterator[str]:
        async with stream:
            async for piece in stream.text_stream:
                yield piece

    return StreamingHttpResponse(text(), content_type="text/plain")


urlpatterns = [path("story", story), path("async-story", async_story)]
