"""An agent of openai-agents, billed to a user.

python examples/libraries/openai_agent.py
"""

import os
from urllib.parse import quote

import openai
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled

set_tracing_disabled(True)
client = openai.AsyncOpenAI(
    base_url=os.environ["WATTFARE_BASE_URL"] + "/api/v1",
    api_key=os.environ["WATTFARE_SECRET_KEY"],
    default_headers={"X-Wattfare-User": quote("user_123")},
)
agent = Agent(
    "assistant",
    model=OpenAIChatCompletionsModel("wattfare/echo", client),
    model_settings=ModelSettings(include_usage=True, preserve_raw_usage=True),
)
result = Runner.run_sync(agent, "Say hello.")
print(result.final_output)
usage = result.raw_responses[-1].raw_usage
print(f"{usage['total_tokens']} tokens, {usage['cost']:.6f} USD")
