"""The openai library in an app's backend, billed to a user.

python examples/openai_client.py
"""

import os
from urllib.parse import quote

import openai
from openai.types.chat import ChatCompletionMessageParam

from wattfare_mw import is_not_connected, to_wattfare_error

user_id = "user_123"
client = openai.OpenAI(
    base_url=os.environ["WATTFARE_BASE_URL"] + "/api/v1",
    api_key=os.environ["WATTFARE_SECRET_KEY"],
    default_headers={"X-Wattfare-User": quote(user_id)},
)
messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
answer = client.chat.completions.create(model="wattfare/echo", messages=messages)
print(answer.choices[0].message.content)

try:
    stranger = client.with_options(default_headers={"X-Wattfare-User": "never-seen"})
    stranger.chat.completions.create(model="wattfare/echo", messages=messages)
except openai.APIError as error:
    if is_not_connected(error):
        print("Connect a budget.")
    else:
        print(to_wattfare_error(error))  # typed, or None where it is no error of Wattfare's
