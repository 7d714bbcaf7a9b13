"""LangChain's ChatOpenAI, billed to a user.

python examples/libraries/langchain_chat.py
"""

import os
from urllib.parse import quote

from langchain_openai import ChatOpenAI

chat = ChatOpenAI(
    model="wattfare/echo",
    base_url=os.environ["WATTFARE_BASE_URL"] + "/api/v1",
    api_key=os.environ["WATTFARE_SECRET_KEY"],
    default_headers={"X-Wattfare-User": quote("user_123")},
    stream_usage=True,
)
answer = chat.invoke("Say hello.")
print(answer.text)
cost = answer.response_metadata["token_usage"]["cost"]
print(f"{answer.usage_metadata['total_tokens']} tokens, {cost:.6f} USD")
