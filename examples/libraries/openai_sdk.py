"""The openai package, billed to a user.

python examples/libraries/openai_sdk.py
"""

import os
from urllib.parse import quote

import openai

client = openai.OpenAI(
    base_url=os.environ["WATTFARE_BASE_URL"] + "/api/v1",
    api_key=os.environ["WATTFARE_SECRET_KEY"],
    default_headers={"X-Wattfare-User": quote("user_123")},
)
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
