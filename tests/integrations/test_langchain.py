"""LangChain's chat model, paid for by a user."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from support.refusals import KEY, TOKEN, payer_of, refuses
from support.service import App
from support.upstream import Exchange, Upstream, broken, completion_of

from wattfare_mw import (
    AsyncWattfare,
    Wattfare,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareRateLimitError,
)


def chat(user: Any, **options: Any) -> Any:
    """A chat model whose calls this handle pays for."""
    from wattfare_mw.integrations.langchain import ChatWattfare

    return ChatWattfare(**{"user": user, "model": "wattfare/echo", **options})


def whole(chunks: Any) -> Any:
    """The sum of a stream's chunks."""
    total: Any = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    return total


async def streamed(model: Any) -> Any:
    """The sum of an async stream's chunks."""
    return whole([chunk async for chunk in model.astream("Hello you.")])


def test_answer_has_its_cost(wf: Wattfare) -> None:
    ann = wf.user("ann")
    model = chat(ann)
    answers = [
        model.invoke("Hello you."),
        whole(model.stream("Hello you.")),
        asyncio.run(model.ainvoke("Hello you.")),
        asyncio.run(streamed(model)),
    ]
    for answer in answers:
        assert answer.text == "Hello you."
        assert answer.response_metadata["cost_usd"] == 0.000006
        assert answer.usage_metadata["total_tokens"] == 4
        json.dumps(answer.response_metadata)
    assert ann.status().usage.monthly_usd == 4 * Decimal("0.000006")


def test_spent_budget_raises(wf: Wattfare) -> None:
    from langchain_core.exceptions import ModelError

    model = chat(wf.user("max"))
    for call in (
        lambda: model.invoke("Hello."),
        lambda: whole(model.stream("Hello.")),
        lambda: asyncio.run(model.ainvoke("Hello.")),
        lambda: asyncio.run(streamed(model)),
    ):
        with pytest.raises(WattfareBudgetExceededError) as caught:
            call()
        assert isinstance(caught.value, ModelError)
        assert caught.value.needed_usd is not None
        assert caught.value.request_id


def test_retries_and_fallbacks_work(fake: Upstream, users: Wattfare) -> None:
    from langchain_core.exceptions import ModelRateLimitError

    busy = refuses(429, "rate_limited", retry_after="50")
    fake.script = busy
    model = chat(users.user("ann"))
    retrying = model.with_retry(
        retry_if_exception_type=(ModelRateLimitError,),
        wait_exponential_jitter=False,
        stop_after_attempt=2,
    )
    with pytest.raises(WattfareRateLimitError) as caught:
        retrying.invoke("Hello.")
    assert (len(fake.calls), caught.value.retry_after) == (2, 50)

    def script(exchange: Exchange) -> None:
        dear = exchange.json["model"] == "a/dear"
        busy(exchange) if dear else exchange.answer(completion_of("Hi."))

    fake.script = script
    models = [chat(users.user("ann"), model=name) for name in ("a/dear", "a/cheap")]
    assert models[0].with_fallbacks(models[1:]).invoke("Hello.").text == "Hi."


def test_tools_and_structured_output_work(fake: Upstream, users: Wattfare) -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        """A city."""

        name: str

    def script(exchange: Exchange) -> None:
        (tool,) = exchange.json["tools"]
        call = {"name": tool["function"]["name"], "arguments": '{"name": "Paris"}'}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": call}],
        }
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        exchange.answer({**completion_of(""), "choices": [choice]})

    fake.script = script
    model = chat(users.user("ann"))
    answer = model.bind_tools([City]).invoke("Hello.")
    assert answer.tool_calls[0]["args"] == {"name": "Paris"}
    assert model.with_structured_output(City).invoke("Hello.") == City(name="Paris")
    structured = asyncio.run(model.with_structured_output(City).ainvoke("Hello."))
    assert structured == City(name="Paris")


def test_cache_is_not_shared_between_users(fake: Upstream, users: Wattfare) -> None:
    from langchain_core.caches import InMemoryCache

    cache = InMemoryCache()
    for user in (users.user("ann"), users.user("ann"), users.user("bob"), users.grant(TOKEN)):
        chat(user, cache=cache).invoke("Hello.")
    assert [payer_of(call) for call in fake.calls] == [("ann", None), ("bob", None), (None, TOKEN)]
    assert "dontyoutellanyone" not in repr(cache._cache)


def test_repr_and_dump_hide_credentials(users: Wattfare) -> None:
    from langchain_core.load import dumpd, dumps

    for user in (users.user("ann"), users.grant(TOKEN)):
        model = chat(user, temperature=0.5)
        shown = [dumps(model), repr(model), str(model), str(model.model_dump())]
        shown += [model.model_dump_json(), str(model.asdict()), str(vars(model))]
        shown += [str(model._get_invocation_params()), str(model._get_ls_params())]
        shown += [str(model._identifying_params), model._get_llm_string(), str(model.lc_attributes)]
        shown += [dumps(model.bind(stop=["x"])), dumps(model | (lambda answer: answer))]
        for text in shown:
            assert "dontyoutellanyone" not in text
            assert KEY not in text
        kwargs = dumpd(model)["kwargs"]
        assert kwargs["model_name"] == "wattfare/echo"
        assert "user" not in kwargs
        assert model.lc_secrets == {"openai_api_key": "WATTFARE_SECRET_KEY"}
        assert model._get_ls_params()["ls_provider"] == "wattfare"
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(model)


def test_copy_has_the_same_user(fake: Upstream, users: Wattfare) -> None:
    model = chat(users.user("ann"))
    for again in (copy.copy(model), copy.deepcopy(model), model.model_copy()):
        assert again.invoke("Hello.").text == "one two three"
    assert {payer_of(call)[0] for call in fake.calls} == {"ann"}


def test_any_handle_can_pay(fake: Upstream, client: Callable[..., Any]) -> None:
    for made in (client(), client(AsyncWattfare)):
        for handle in (made.user("ann"), made.grant(TOKEN)):
            chat(handle).invoke("Hello.")
            asyncio.run(chat(handle).ainvoke("Hello."))
    assert [payer_of(call) for call in fake.calls[::2]] == [("ann", None), (None, TOKEN)] * 2
    for wrong in ("ann", client(), 5):
        with pytest.raises(TypeError, match=r"user must be the result of wf\.user"):
            chat(wrong)


def test_fields_set_by_the_user_handle_cannot_be_changed(
    users: Wattfare, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("api_key", "base_url", "organization"):
        with pytest.raises(ValueError, match="cannot be set"):
            chat(users.user("ann"), **{name: "x"})
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_API_BASE", "http://elsewhere")
    monkeypatch.setenv("OPENAI_PROXY", "http://elsewhere")
    model = chat(users.user("ann"), timeout=3, max_retries=0)
    assert (model.root_client.timeout, model.root_async_client.max_retries) == (3, 0)
    assert (model.openai_api_key, model.openai_organization, model.openai_proxy) == (None,) * 3
    assert str(model.root_client.base_url) == f"{users.base_url}/api/v1/"


def test_broken_stream_raises(fake: Upstream, users: Wattfare) -> None:
    fake.script = broken
    with pytest.raises(WattfareError) as caught:
        whole(chat(users.user("ann")).stream("Hello."))
    assert caught.value.code == "upstream"


def test_user_that_is_set_later_pays(fake: Upstream, users: Wattfare) -> None:
    from langchain_core.runnables import ConfigurableField

    model = chat(users.user("ann"))
    copied = copy.copy(model)
    copied.user = users.user("bob")
    fields = {"user": ConfigurableField(id="user"), "model_name": ConfigurableField(id="model")}
    configured = model.configurable_fields(**fields)
    for changed in (
        copied,
        model.model_copy(update={"user": users.user("bob")}),
        configured.with_config(configurable={"user": users.user("bob"), "model": "b"}),
    ):
        changed.invoke("Hello.")
        asyncio.run(changed.ainvoke("Hello."))
        list(changed.stream("Hello."))
    assert [payer_of(call)[0] for call in fake.calls] == ["bob"] * 9
    assert json.loads(fake.calls[-1].body)["model"] == "b"
    with pytest.raises(TypeError, match=r"user must be the result of wf\.user"):
        model.user = "bob"
    model.invoke("Hello.")
    configured.with_config(configurable={"model": "c"}).invoke("Hello.")
    assert [payer_of(call)[0] for call in fake.calls[9:]] == ["ann"] * 2


def test_cached_answer_costs_nothing(wf: Wattfare) -> None:
    from langchain_core.caches import InMemoryCache

    model = chat(wf.user("ann"), cache=InMemoryCache())
    first, again, third = (model.invoke("Hello.") for _ in range(3))
    costs = [answer.response_metadata["cost_usd"] for answer in (first, again, third)]
    assert costs == [0.000003, 0, 0]
    assert wf.user("ann").status().usage.monthly_usd == Decimal("0.000003")


def test_cache_waits_for_the_current_user(app: App) -> None:
    """The event loop that computes the cache key must resolve the user."""
    from langchain_core.caches import InMemoryCache

    from wattfare_mw import WattfareMiddleware

    model = chat(None, cache=InMemoryCache())
    costs: list[float] = []

    async def who(request: Any) -> str | None:
        await asyncio.sleep(0)
        return request.headers.get("x-me")

    async def view(scope: Any, receive: Any, send: Any) -> None:
        costs.append((await model.ainvoke("Hello.")).response_metadata["cost_usd"])

    site: Any = WattfareMiddleware(
        view,
        secret_key=app.keys.secret_key,
        base_url=app.service.url,
        resolve_user=who,
        current_user=True,
        interface="asgi",
    )

    async def visit() -> None:
        for user in (b"ann", b"bob", b"ann"):
            scope = {"type": "http", "path": "/", "root_path": "", "headers": [(b"x-me", user)]}
            await site({**scope, "method": "GET", "query_string": b""}, None, None)
        await site.aclose()

    asyncio.run(visit())
    assert costs == [0.000003, 0.000003, 0]
