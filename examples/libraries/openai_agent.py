"""An agent of openai-agents, billed to a user.

python examples/libraries/openai_agent.py
"""

from agents import Agent, RunConfig, Runner

from wattfare_mw import Wattfare
from wattfare_mw.integrations.agents import WattfareModelProvider

user = Wattfare().user("user_123")
agent = Agent("assistant", model="wattfare/echo")
config = RunConfig(model_provider=WattfareModelProvider(user), tracing_disabled=True)
result = Runner.run_sync(agent, "Say hello.", run_config=config)
print(result.final_output)
usage = result.raw_responses[-1].raw_usage
print(f"{usage['total_tokens']} tokens, {usage['cost']:.6f} USD")
