"""The openai package, billed to a user.

python examples/libraries/openai_sdk.py
"""

from wattfare_mw import Wattfare

client = Wattfare().user("user_123").openai()
stream = client.chat.completions.create(
    model="wattfare/echo",
    messages=[{"role": "user", "content": "Say hello."}],
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="")
    if chunk.usage:
        print(f"\n{chunk.usage.total_tokens} tokens, {chunk.usage.cost:.6f} USD")
