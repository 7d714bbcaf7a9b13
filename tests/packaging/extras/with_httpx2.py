"""httpx2 can be the HTTP client of sync and async clients."""

import asyncio

import httpx2
from fake_service import fake_service

from wattfare_mw import AsyncWattfare, Wattfare


async def main() -> None:
    async with AsyncWattfare(http_client=httpx2.AsyncClient) as wf:
        answer = await wf.user("ann").model("wattfare/echo").generate("Say hello.")
    assert answer.text == "Hello."


with fake_service():
    asyncio.run(main())
    with Wattfare(http_client=httpx2.Client) as wf:
        assert wf.user("ann").model("wattfare/echo").generate("Say hello.").text == "Hello."
