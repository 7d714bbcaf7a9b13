"""A model of llm, billed to a user.

python examples/libraries/llm_model.py
"""

import os
from urllib.parse import quote

from llm.default_plugins.openai_models import Chat

model = Chat(
    "wattfare/echo",
    api_base=os.environ["WATTFARE_BASE_URL"] + "/api/v1",
    headers={"X-Wattfare-User": quote("user_123")},
)
response = model.prompt("Say hello.", key=os.environ["WATTFARE_SECRET_KEY"])
print(response.text())
usage = response.usage()
print(f"{usage.input + usage.output} tokens, {usage.details['cost']:.6f} USD")
