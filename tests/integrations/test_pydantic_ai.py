"""pydantic-ai's agents, paid for by a user."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.refusals import KEY, TOKEN, calls_a_tool_then_refuses, payer_of, refuses
from support.upstream import Exchange, Upstream, broken, completion_of

from wattfare_mw import (
    AsyncWattfare,
    Wattfare,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareNetworkError,
    is_budget_exceeded,
    to_wattfare_error,
)


def agent(handle: Any, **options: Any) -> Any:
    """An agent whose runs this handle pays for."""
    from pydantic_ai import Agent

    return Agent(model(handle), **options)


def model(handle: Any, name: str = "wattfare/echo") -> Any:
    """A model whose calls this handle pays for."""
    from pydantic_ai.models.openai import OpenAIChatModel

    from wattfare_mw.integrations.pydantic_ai import WattfareProvider

    return OpenAIChatModel(name, provider=WattfareProvider(handle))


async def words_of(handle: Any) -> list[str]:
    """The pieces of a streamed run."""
    async with agent(handle).run_stream("Hello you.") as result:
        return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]


def test_run_is_billed_to_its_user(wf: Wattfare) -> None:
    result = asyncio.run(agent(wf.user("ann")).run("Hello."))
    assert result.output == "Hello."
    assert result.usage.total_tokens == 2
    assert wf.user("ann").status().usage.monthly_usd > 0
    assert asyncio.run(words_of(wf.user("bob"))) == ["Hello ", "you."]
    assert wf.user("bob").status().usage.monthly_usd > 0


def test_spent_budget_raises_from_the_run(wf: Wattfare) -> None:
    from pydantic_ai.exceptions import ModelHTTPError, ModelQuotaExceededError

    for run in (
        lambda: asyncio.run(agent(wf.user("max")).run("Hello.")),
        lambda: asyncio.run(words_of(wf.user("max"))),
    ):
        with pytest.raises(WattfareBudgetExceededError) as caught:
            run()
        error: Any = caught.value
        assert isinstance(error, ModelHTTPError)
        assert isinstance(error, ModelQuotaExceededError)
        assert type(error).__name__ == "WattfareBudgetExceededError"
        assert (error.model_name, error.status_code) == ("wattfare/echo", 402)
        assert error.needed_usd > error.remaining_usd == 0
        assert error.request_id


def test_spent_budget_raises_between_two_calls(fake: Upstream, users: Wattfare) -> None:
    def look() -> str:
        return "sunny"

    fake.script = calls_a_tool_then_refuses(fake, "look")
    with pytest.raises(WattfareBudgetExceededError):
        asyncio.run(agent(users.user("ann"), tools=[look]).run("Hello."))
    assert len(fake.calls) == 2


def test_fallback_model_works_and_its_errors_are_found(fake: Upstream, users: Wattfare) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.fallback import FallbackModel

    refuse = refuses(402, "budget_exceeded")

    def script(exchange: Exchange) -> None:
        dear = exchange.json["model"] == "a/dear"
        refuse(exchange) if dear else exchange.answer(completion_of("Hi."))

    fake.script = script
    dear, cheap = (model(users.user("ann"), name) for name in ("a/dear", "a/cheap"))
    assert asyncio.run(Agent(FallbackModel(dear, cheap)).run("Hello.")).output == "Hi."
    fake.script = refuse
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(Agent(FallbackModel(dear, cheap)).run("Hello."))
    assert is_budget_exceeded(caught.value)


@pytest.mark.parametrize(
    ("script", "code", "name"),
    [
        (refuses(429, "rate_limited", retry_after="50"), "rate_limited", "ModelRateLimitError"),
        (refuses(401, "auth"), "auth", "ModelAuthenticationError"),
        (refuses(400, "invalid_request"), "invalid_request", "ModelRequestRejectedError"),
        (refuses(502, "upstream"), "upstream", "ModelServerError"),
        (Exchange.reset, "network", "ModelConnectionError"),
    ],
)
def test_error_belongs_to_both_packages(
    fake: Upstream, users: Wattfare, script: Any, code: str, name: str
) -> None:
    from pydantic_ai import exceptions

    fake.script = script
    with pytest.raises(WattfareError) as caught:
        asyncio.run(agent(users.user("ann")).run("Hello."))
    assert isinstance(caught.value, getattr(exceptions, name))
    assert caught.value.code == code
    assert caught.value.retry_after == (50 if code == "rate_limited" else None)
    assert isinstance(caught.value, WattfareNetworkError) is (code == "network")


def test_broken_stream_raises(fake: Upstream, users: Wattfare) -> None:
    fake.script = broken
    with pytest.raises(WattfareError) as caught:
        asyncio.run(words_of(users.user("ann")))
    assert caught.value.code == "upstream"


def test_any_handle_can_pay(fake: Upstream, client: Callable[..., Any]) -> None:
    from wattfare_mw.integrations.pydantic_ai import WattfareProvider

    for made in (client(), client(AsyncWattfare)):
        for handle in (made.user("ann"), made.grant(TOKEN)):
            provider = WattfareProvider(handle)
            assert (provider.name, KEY in repr(provider)) == ("wattfare", False)
            assert asyncio.run(agent(handle).run("Hello.")).output == "one two three"
    assert [payer_of(call) for call in fake.calls] == [("ann", None), (None, TOKEN)] * 2
    for wrong in ("ann", client(), client().user("ann").model("a/b"), 5):
        with pytest.raises(TypeError, match=r"user must be the result of wf\.user"):
            WattfareProvider(wrong)


def test_model_has_the_profile_of_its_vendor() -> None:
    from pydantic_ai.providers.openrouter import OpenRouterProvider

    from wattfare_mw.integrations.pydantic_ai import WattfareProvider

    for name in ("anthropic/claude-sonnet-4", "google/gemini-2.5-pro", "openai/gpt-4.1"):
        assert WattfareProvider.model_profile(name) == OpenRouterProvider.model_profile(name)
    assert WattfareProvider.model_profile("echo") is not None


def test_typed_error_is_found_in_an_unexpected_behaviour() -> None:
    from pydantic_ai import UnexpectedModelBehavior

    error = UnexpectedModelBehavior("Exceeded maximum retries")
    error.__cause__ = WattfareBudgetExceededError(request_id="r1")
    found = to_wattfare_error(ExceptionGroup("tools", [ValueError(), error]))
    assert found is error.__cause__
