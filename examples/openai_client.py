"""The openai library in an app's backend, billed to a user.

python examples/openai_client.py
"""

from wattfare_mw import Wattfare, WattfareNotConnectedError

with Wattfare() as wf:
    client = wf.user("user_123").openai()
    messages = [{"role": "user", "content": "Say hello."}]
    answer = client.chat.completions.create(model="wattfare/echo", messages=messages)
    print(answer.choices[0].message.content)

    stranger = wf.user("never-seen").openai()
    try:
        stranger.chat.completions.create(model="wattfare/echo", messages=messages)
    except WattfareNotConnectedError:
        print("Connect a budget.")
