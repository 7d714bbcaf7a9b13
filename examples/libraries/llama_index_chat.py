"""LlamaIndex, billed to a user.

python examples/libraries/llama_index_chat.py
"""

import os
from urllib.parse import quote

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model="wattfare/echo",
    api_base=os.environ["WATTFARE_BASE_URL"] + "/api/v1",
    api_key=os.environ["WATTFARE_SECRET_KEY"],
    default_headers={"X-Wattfare-User": quote("user_123")},
    is_chat_model=True,
    is_function_calling_model=True,
)
messages = [ChatMessage(role="user", content="Say hello.")]
for chunk in llm.stream_chat(messages, stream_options={"include_usage": True}):
    print(chunk.delta or "", end="")
print(f"\n{chunk.raw.usage.total_tokens} tokens, {chunk.raw.usage.cost:.6f} USD")
