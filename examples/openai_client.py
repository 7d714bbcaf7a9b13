"""The openai library in an app's backend, billed to a user.

python examples/openai_client.py
"""

import openai

from wattfare_mw import Wattfare, WattfareNotConnectedError, is_not_connected

with Wattfare() as wf:
    client = wf.user("user_123").openai()  # an openai.OpenAI; async_openai() for asyncio
    answer = client.chat.completions.create(
        model="wattfare/echo", messages=[{"role": "user", "content": "Say hello."}]
    )
    print(answer.choices[0].message.content)

    stranger = wf.user("never-seen").openai()
    try:
        stranger.chat.completions.create(
            model="wattfare/echo", messages=[{"role": "user", "content": "Say hello."}]
        )
    except WattfareNotConnectedError:
        print("Connect a budget.")

    try:
        stranger.chat.completions.create(
            model="wattfare/echo", messages=[{"role": "user", "content": "Say hello."}]
        )
    except openai.APIError as error:
        if is_not_connected(error):
            print("Connect a budget.")
        else:
            raise
