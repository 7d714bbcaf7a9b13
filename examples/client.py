"""The client, in a script.

python examples/client.py
"""

from wattfare_mw import Wattfare

with Wattfare() as wf:  # reads WATTFARE_SECRET_KEY and WATTFARE_BASE_URL
    user = wf.user("user_123")  # your app's id of the user; sends no request

    status = user.status()
    print(status.connected, status.limits, status.usage.monthly_usd, status.remaining_usd)

    model = user.model("wattfare/echo")  # or any OpenRouter id: "anthropic/claude-sonnet-4"

    answer = model.generate("Say hello.", max_tokens=50)
    print(answer.text, answer.usage, answer.cost_usd)

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tell me a story."},
    ]
    with model.stream(messages=messages) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print(stream.usage, stream.cost_usd)

    session = wf.create_session("user_123", request_limit=20)  # ask for a cap of 20 USD a month
    print(session.expires_at)  # give session.token only to this user's browser
