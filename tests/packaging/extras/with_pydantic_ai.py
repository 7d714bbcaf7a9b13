"""An agent of pydantic-ai that a user pays for."""

import asyncio

from fake_service import fake_service
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel

from wattfare_mw import AsyncWattfare
from wattfare_mw.integrations.pydantic_ai import WattfareProvider


async def main() -> None:
    async with AsyncWattfare() as wf:
        model = OpenAIChatModel("wattfare/echo", provider=WattfareProvider(wf.user("ann")))
        assert (await Agent(model).run("Say hello.")).output == "Hello."


with fake_service():
    asyncio.run(main())
