"""litellm, billed to a user.

python examples/libraries/litellm_completion.py
"""

import litellm

from wattfare_mw import Wattfare

answer = litellm.completion(
    model="openai/wattfare/echo",
    messages=[{"role": "user", "content": "Say hello."}],
    client=Wattfare().user("user_123").openai(),
)
print(answer.choices[0].message.content)
print(f"{answer.usage.total_tokens} tokens, {answer.usage.cost:.6f} USD")
