"""An agent of pydantic-ai, billed to a user.

python examples/libraries/pydantic_agent.py
"""

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel

from wattfare_mw import Wattfare
from wattfare_mw.integrations.pydantic_ai import WattfareProvider

user = Wattfare().user("user_123")
agent = Agent(OpenAIChatModel("wattfare/echo", provider=WattfareProvider(user)))
result = agent.run_sync("Say hello.")
print(result.output)
print(f"{result.usage.total_tokens} tokens")
