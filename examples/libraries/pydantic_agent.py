"""An agent of pydantic-ai, billed to a user.

python examples/libraries/pydantic_agent.py
"""

import os
from urllib.parse import quote

import openai
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

client = openai.AsyncOpenAI(
    base_url=os.environ["WATTFARE_BASE_URL"] + "/api/v1",
    api_key=os.environ["WATTFARE_SECRET_KEY"],
    default_headers={"X-Wattfare-User": quote("user_123")},
)
model = OpenAIChatModel("wattfare/echo", provider=OpenAIProvider(openai_client=client))
result = Agent(model).run_sync("Say hello.")
print(result.output)
print(f"{result.usage.total_tokens} tokens")
