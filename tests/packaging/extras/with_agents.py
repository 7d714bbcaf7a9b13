"""An agent of openai-agents that a user pays for."""

import asyncio

from agents import Agent, RunConfig, Runner
from fake_service import fake_service

from wattfare_mw import AsyncWattfare
from wattfare_mw.integrations.agents import WattfareModelProvider


async def main() -> None:
    async with AsyncWattfare() as wf:
        provider = WattfareModelProvider(wf.user("ann"))
        config = RunConfig(model_provider=provider, tracing_disabled=True)
        agent = Agent("assistant", model="wattfare/echo")
        assert (await Runner.run(agent, "Say hello.", run_config=config)).final_output == "Hello."


with fake_service():
    asyncio.run(main())
