"""Agents of openai-agents, paid for by a user."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.refusals import KEY, TOKEN, calls_a_tool_then_refuses, payer_of
from support.upstream import Upstream, broken

from wattfare_mw import (
    AsyncWattfare,
    Wattfare,
    WattfareBudgetExceededError,
    WattfareError,
    to_wattfare_error,
)


def run(handle: Any, *, tools: Any = (), model: str | None = "wattfare/echo") -> Any:
    """A whole run that a handle pays for."""
    from agents import Agent, Runner

    agent = Agent("a", model=model, tools=list(tools))
    return asyncio.run(Runner.run(agent, "Hello you.", run_config=config(handle)))


async def stream(handle: Any) -> Any:
    """The same as a stream."""
    from agents import Agent, Runner

    agent = Agent("a", model="wattfare/echo")
    result = Runner.run_streamed(agent, "Hello you.", run_config=config(handle))
    async for _ in result.stream_events():
        pass
    return result


def config(handle: Any) -> Any:
    """The configuration of a run that a handle pays for."""
    from agents import RunConfig

    from wattfare_mw.integrations.agents import WattfareModelProvider

    provider = WattfareModelProvider(handle)
    return RunConfig(model_provider=provider, tracing_disabled=True)


def test_run_is_billed_to_its_user(wf: Wattfare) -> None:
    result = run(wf.user("ann"))
    assert result.final_output == "Hello you."
    assert result.raw_responses[-1].raw_usage["cost"] == 0.000006
    assert wf.user("ann").status().usage.monthly_usd > 0

    result = asyncio.run(stream(wf.user("bob")))
    assert result.final_output == "Hello you."
    assert result.context_wrapper.usage.total_tokens == 4
    assert wf.user("bob").status().usage.monthly_usd > 0


def test_spent_budget_raises_from_the_run(wf: Wattfare) -> None:
    for call in (lambda: run(wf.user("max")), lambda: asyncio.run(stream(wf.user("max")))):
        with pytest.raises(WattfareBudgetExceededError) as caught:
            call()
        assert caught.value.needed_usd is not None
        assert caught.value.request_id


def test_spent_budget_inside_a_tool_raises_if_the_tool_handles_no_errors(
    fake: Upstream, users: Wattfare, wf: Wattfare
) -> None:
    from agents import function_tool

    def look() -> str:
        """Look."""
        return wf.user("max").model("wattfare/echo").generate("Hello you.").text

    fake.script = calls_a_tool_then_refuses(fake, "look")
    tool = function_tool(look, failure_error_function=None)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(users.user("ann"), tools=[tool])
    found = to_wattfare_error(caught.value)
    assert isinstance(found, WattfareBudgetExceededError)
    assert found.request_id
    assert len(fake.calls) == 1  # the model is not asked again


def test_spent_budget_raises_between_two_calls(fake: Upstream, users: Wattfare) -> None:
    from agents import function_tool

    def look() -> str:
        """Look."""
        return "sunny"

    fake.script = calls_a_tool_then_refuses(fake, "look")
    with pytest.raises(WattfareBudgetExceededError):
        run(users.user("ann"), tools=[function_tool(look)])
    assert len(fake.calls) == 2


def test_broken_stream_raises(fake: Upstream, users: Wattfare) -> None:
    fake.script = broken
    with pytest.raises(WattfareError) as caught:
        asyncio.run(stream(users.user("ann")))
    assert caught.value.code == "upstream"


def test_any_handle_can_pay(fake: Upstream, client: Callable[..., Any]) -> None:
    from wattfare_mw.integrations.agents import WattfareModelProvider

    for made in (client(), client(AsyncWattfare)):
        for handle in (made.user("ann"), made.grant(TOKEN)):
            run(handle)
    assert [payer_of(call) for call in fake.calls] == [("ann", None), (None, TOKEN)] * 2
    for wrong in ("ann", client(), 5):
        with pytest.raises(TypeError, match=r"user must be the result of wf\.user"):
            WattfareModelProvider(wrong)


def test_model_needs_a_name(users: Wattfare) -> None:
    from agents import UserError

    with pytest.raises(UserError, match="Name a model"):
        config(users.user("ann")).model_provider.get_model(None)


def test_tracing_gets_no_key(users: Wattfare) -> None:
    from agents.models import _openai_shared
    from agents.tracing.processors import default_exporter

    run(users.user("ann"))
    assert default_exporter().api_key is None
    assert _openai_shared.get_default_openai_key() is None
    assert _openai_shared.get_default_openai_client() is None
    assert KEY not in repr(vars(default_exporter()))


@pytest.mark.filterwarnings("ignore:asynchronous generator:ResourceWarning")
@pytest.mark.parametrize("kind", [Wattfare, AsyncWattfare])
def test_run_sync_can_be_called_again(
    fake: Upstream, client: Callable[..., Any], kind: Any
) -> None:
    """run_sync closes the async generators of its event loop, and keeps using the loop."""
    from agents import Agent, Runner

    async def of_its_own() -> str:
        return (await own.generate("Hello.")).text

    own = client(AsyncWattfare).user("ann").model("m")
    handle = client(kind).user("ann")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        for _ in range(3):
            result = Runner.run_sync(Agent("a", model="m"), "Hello.", run_config=config(handle))
            assert result.final_output == "one two three"
            assert loop.run_until_complete(of_its_own()) == "one two three"
    finally:
        asyncio.set_event_loop(None)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
