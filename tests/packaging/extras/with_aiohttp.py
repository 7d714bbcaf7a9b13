"""The asynchronous client uses aiohttp."""

import asyncio
import sys

from fake_service import fake_service

from wattfare_mw import AsyncWattfare


async def main() -> None:
    async with AsyncWattfare() as wf:
        answer = await wf.user("ann").model("wattfare/echo").generate("Say hello.")
    assert answer.text == "Hello."


with fake_service():
    asyncio.run(main())
assert "aiohttp" in sys.modules
