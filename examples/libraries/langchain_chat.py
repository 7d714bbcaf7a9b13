"""A chat model of LangChain, billed to a user.

python examples/libraries/langchain_chat.py
"""

from wattfare_mw import Wattfare
from wattfare_mw.integrations.langchain import ChatWattfare

chat = ChatWattfare(user=Wattfare().user("user_123"), model="wattfare/echo")
answer = chat.invoke("Say hello.")
print(answer.text)
cost = answer.response_metadata["cost_usd"]
print(f"{answer.usage_metadata['total_tokens']} tokens, {cost:.6f} USD")
