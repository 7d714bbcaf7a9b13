"""litellm, billed to a user.

python examples/libraries/litellm_completion.py
"""

import os
from urllib.parse import quote

import litellm

answer = litellm.completion(
    model="openai/wattfare/echo",
    messages=[{"role": "user", "content": "Say hello."}],
    api_base=os.environ["WATTFARE_BASE_URL"] + "/api/v1",
    api_key=os.environ["WATTFARE_SECRET_KEY"],
    extra_headers={"X-Wattfare-User": quote("user_123")},
)
print(answer.choices[0].message.content)
print(f"{answer.usage.total_tokens} tokens, {answer.usage.cost:.6f} USD")
