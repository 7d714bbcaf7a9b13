"""The client for asyncio, with timeouts and your own HTTP client.

python examples/async_client.py
"""

import asyncio

import httpx

from wattfare_mw import AsyncWattfare, Timeout


async def main() -> None:
    async with AsyncWattfare() as wf:
        user = wf.user("user_123")
        print((await user.status()).remaining_usd)

        model = user.model("wattfare/echo")
        answer = await model.generate("Say hello.", max_tokens=50)
        print(answer.text)

        async with model.stream("Tell me a story.") as stream:
            async for text in stream.text_stream:
                print(text, end="", flush=True)
        print(stream.cost_usd)


async def with_my_own_http_client() -> None:
    async with httpx.AsyncClient() as http_client:
        wf = AsyncWattfare(
            http_client=http_client,
            timeout=Timeout(connect=2, read=10, inference=120),
            max_retries=5,
        )
        print((await wf.user("user_123").status()).connected)


asyncio.run(main())
asyncio.run(with_my_own_http_client())
