"""Each framework under its server, used by the two common clients: what they receive, and the exact
bill of each user."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from support.node import Sdk
from support.pairs import Server
from support.service import App, bearer, eventually

from .conftest import MortalService

ECHO = "wattfare/echo"
SLOW = "wattfare/echo-slow"


def cost(prompt: int, completion: int) -> Decimal:
    return prompt * Decimal("0.000001") + completion * Decimal("0.000002")


def spent(app: App, user: str) -> Decimal:
    return Decimal(str(app.status(user)["usage"]["monthlyUsd"]))


def says(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def by_sdk(server: Server, user: str | None, prompt: str, **more: Any) -> dict[str, Any]:
    """A request for the AI SDK. A header names its user."""
    return {
        "baseURL": f"{server.url}/api/wattfare",
        "headers": {"x-user": user} if user else {},
        "model": ECHO,
        "prompt": prompt,
        **more,
    }


@pytest.fixture
def user(app: App, new_user: Callable[[], str]) -> str:
    """A user with a dollar a month."""
    user = new_user()
    app.connect(user, monthlyUsd=1)
    return user


def test_openai_client(
    server: Server, app: App, user: str, new_user: Callable[[], str], openai_for: Any
) -> None:
    other = new_user()
    app.connect(other, monthlyUsd=1)
    client = openai_for(server, user)

    whole = client.chat.completions.create(model=ECHO, messages=says("one two  three"))
    assert whole.choices[0].message.content == "one two three"
    assert whole.choices[0].finish_reason == "stop"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 3)
    assert spent(app, user) == cost(3, 3)

    stream = client.chat.completions.create(
        model=ECHO,
        messages=says("four 'fünf' ⑥ \u2028 7"),
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).split() == [
        *("four", "'fünf'", "⑥"),
    ]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 3
    prompt = chunks[-1].usage.prompt_tokens
    assert prompt == 4
    assert spent(app, user) == cost(3, 3) + cost(prompt, 3)

    assert {model.id for model in client.models.list()} == {ECHO, SLOW}
    # No other user has paid for any of it.
    assert spent(app, other) == 0
    assert app.status(user)["remainingUsd"] == float(1 - cost(3, 3) - cost(prompt, 3))


def test_ai_sdk(server: Server, app: App, user: str, new_user: Callable[[], str], sdk: Sdk) -> None:
    other = new_user()
    app.connect(other, monthlyUsd=1)

    whole = sdk.generate(**by_sdk(server, user, "one two three"))
    assert whole["event"] == "end", whole
    assert (whole["text"], whole["finishReason"]) == ("one two three", "stop")
    usage = whole["usage"]
    assert (usage["inputTokens"], usage["outputTokens"], usage["totalTokens"]) == (3, 3, 6)
    assert spent(app, user) == cost(3, 3)

    job = sdk.stream(**by_sdk(server, user, "four 'fünf' ⑥ sieben", maxOutputTokens=3))
    streamed = job.end()
    assert (streamed["text"].split(), streamed["finishReason"]) == (
        ["four", "'fünf'", "⑥"],
        "length",
    )
    assert [event["event"] for event in job.events] == ["text"] * 3
    usage = streamed["usage"]
    assert (usage["inputTokens"], usage["outputTokens"], usage["totalTokens"]) == (4, 3, 7)
    assert spent(app, user) == cost(3, 3) + cost(4, 3)
    assert spent(app, other) == 0


def test_first_run_and_the_apps_own_view(
    server: Server,
    app: App,
    new_user: Callable[[], str],
    browser: httpx.Client,
    openai_for: Any,
    sdk: Sdk,
) -> None:
    user = new_user()
    client = openai_for(server, user)

    # No user is signed in.
    with pytest.raises(openai.AuthenticationError) as anonymous:
        openai_for(server, None).chat.completions.create(model=ECHO, messages=says("hi"))
    assert anonymous.value.code == "auth"
    failed = sdk.generate(**by_sdk(server, None, "hi"))
    assert (failed["event"], failed["status"], failed["code"]) == ("failed", 401, "auth")
    assert browser.get(f"{server.url}/spent").status_code == 401

    # Signed in, but not connected.
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model=ECHO, messages=says("hi"), stream=stream)
        assert (refused.value.status_code, refused.value.code) == (402, "not_connected")
    failed = sdk.generate(**by_sdk(server, user, "hi"))
    assert (failed["status"], failed["code"]) == (402, "not_connected")
    job = sdk.stream(**by_sdk(server, user, "hi"))
    ended = job.end()
    assert [(e["event"], e["code"], e["status"]) for e in job.events] == [
        ("error", "not_connected", 402)
    ]
    assert not ended.get("text")

    # The browser connects with a token of the app's own route: enough for one call.
    cookie = {"cookie": f"user={user}"}
    token = browser.post(f"{server.url}/api/wattfare-token", headers=cookie)
    assert token.status_code == 200, token.text
    connected = browser.post(
        f"{app.service.api}/connections",
        json={"monthlyUsd": 0.00001},
        headers=bearer(token.json()["token"]),
    )
    assert connected.status_code == 200, connected.text
    answer = client.chat.completions.create(model=ECHO, messages=says("a b c"))
    assert answer.choices[0].message.content == "a b c"

    # Now the cap is reached.
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model=ECHO, messages=says("a b c"), stream=stream)
        assert (refused.value.status_code, refused.value.code) == (402, "budget_exceeded")
    failed = sdk.generate(**by_sdk(server, user, "a b c"))
    assert (failed["status"], failed["code"]) == (402, "budget_exceeded")
    job = sdk.stream(**by_sdk(server, user, "a b c"))
    job.end()
    assert [(e["event"], e["code"]) for e in job.events] == [("error", "budget_exceeded")]

    assert spent(app, user) == cost(3, 3)
    status = browser.get(f"{server.url}/api/wattfare/status", headers=cookie).json()
    assert status == app.status(user)
    assert status["remainingUsd"] == 0.000001
    assert browser.get(f"{server.url}/spent", headers=cookie).json() == {"usd": 0.000009}


def test_cap_holds_for_concurrent_calls(
    server: Server, app: App, new_user: Callable[[], str], openai_for: Any
) -> None:
    user = new_user()
    app.connect(user, monthlyUsd=float(3 * cost(2, 2)))
    client = openai_for(server, user)

    def call(_: int) -> str:
        try:
            answer = client.chat.completions.create(model=ECHO, messages=says("a b"))
        except openai.APIStatusError as error:
            return str(error.code)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(call, range(8)))
    assert statuses.count("a b") == 3
    # Calls in flight may hold the budget. The error of the others says to retry.
    assert set(statuses) <= {"a b", "budget_exceeded", "rate_limited"}
    assert spent(app, user) == 3 * cost(2, 2)


WORDS = 200


@pytest.mark.parametrize("client", ["openai", "ai-sdk"])
def test_disconnected_client_pays_for_what_was_sent(
    client: str, server: Server, app: App, user: str, openai_for: Any, sdk: Sdk
) -> None:
    text = "w " * WORDS
    if client == "openai":
        stream = openai_for(server, user).chat.completions.create(
            model=SLOW, messages=says(text), stream=True
        )
        heard = [next(stream).choices[0].delta.content for _ in range(4)]
        assert [word for word in heard if word] == ["w "] * 3
        stream.close()
    else:
        job = sdk.stream(**by_sdk(server, user, text, model=SLOW))
        assert [job.next()["event"] for _ in range(3)] == ["text"] * 3
        job.abort()
    billed = eventually(lambda: spent(app, user))
    words = (billed - cost(WORDS, 0)) / cost(0, 1)
    # Some more words are sent before the disconnect is noticed.
    assert 3 <= words < WORDS
    # No reservation is left.
    whole = openai_for(server, user).chat.completions.create(model=ECHO, messages=says("a"))
    assert whole.choices[0].message.content == "a"
    assert spent(app, user) == billed + cost(1, 1)


def test_service_that_dies_within_a_stream_is_an_error_to_both_clients(
    server: Server,
    service: MortalService,
    app: App,
    new_user: Callable[[], str],
    openai_for: Any,
    sdk: Sdk,
) -> None:
    one, two = new_user(), new_user()
    app.connect(one)
    app.connect(two)
    text = "w " * WORDS
    stream = openai_for(server, one).chat.completions.create(
        model=SLOW, messages=says(text), stream=True
    )
    job = sdk.stream(**by_sdk(server, two, text, model=SLOW))
    assert next(stream).choices
    assert job.next()["event"] == "text"

    with service.killed():
        heard: list[Any] = []
        with pytest.raises(openai.APIError) as broken:
            heard.extend(stream)
        assert broken.value.code == "upstream"
        assert all(chunk.choices[0].finish_reason is None for chunk in heard)
        ended = job.end()
        assert [e["event"] for e in job.events if e["event"] != "text"] == ["error"]
        assert "broke off" in str(job.events[-1])
        assert ended.get("finishReason") not in ("stop", "length")

        # Nothing listens any more.
        with pytest.raises(openai.APIStatusError) as away:
            openai_for(server, one).chat.completions.create(model=ECHO, messages=says("a"))
        assert (away.value.status_code, away.value.code) == (502, "network")

    # The app finds the next process of the service.
    whole = openai_for(server, two).chat.completions.create(model=ECHO, messages=says("a"))
    assert whole.choices[0].message.content == "a"
