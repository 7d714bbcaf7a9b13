"""An openai client that a user pays for."""

from fake_service import fake_service

from wattfare_mw import Wattfare

with fake_service(), Wattfare() as wf:
    answer = (
        wf.user("ann")
        .openai()
        .chat.completions.create(
            model="wattfare/echo", messages=[{"role": "user", "content": "Say hello."}]
        )
    )
    assert answer.choices[0].message.content == "Hello."
