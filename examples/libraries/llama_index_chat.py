"""A chat by LlamaIndex, billed to a user.

python examples/libraries/llama_index_chat.py
"""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

from wattfare_mw import Wattfare

llm = OpenAILike(
    model="wattfare/echo",
    openai_client=Wattfare().user("user_123").openai(),
    is_chat_model=True,
    is_function_calling_model=True,
)
messages = [ChatMessage(role="user", content="Say hello.")]
for chunk in llm.stream_chat(messages, stream_options={"include_usage": True}):
    print(chunk.delta or "", end="")
print(f"\n{chunk.raw.usage.total_tokens} tokens, {chunk.raw.usage.cost:.6f} USD")
