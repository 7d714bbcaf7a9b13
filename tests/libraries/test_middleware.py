"""What `on_usage` of an app's middleware gets if a library calls through it."""

from __future__ import annotations

from decimal import Decimal

import pytest
from support.service import eventually

from libraries.conftest import World
from libraries.drivers.base import says
from libraries.model import COMPLETION, MODEL, NAMED, PRICED, PROMPT
from libraries.table import Library, selected

#: Libraries that an app's frontend may use, and the openai package itself.
LIBRARIES = [library for library in selected() if library.through != "service"]


@pytest.mark.parametrize("verb", ["ask", "stream"])
@pytest.mark.parametrize(("reports_cost", "cost"), [(True, NAMED), (False, PRICED)])
@pytest.mark.parametrize("framework", ["starlette", "flask"])
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_on_usage_gets_the_cost_that_the_library_reads(
    library: Library, framework: str, reports_cost: bool, cost: Decimal, verb: str, world: World
) -> None:
    world.connect()
    world.model.reports_cost = reports_cost
    answer = getattr(world.driver(library, framework), verb)()
    eventually(lambda: world.bills)
    ((user, model, usage, cost_usd),) = world.bills
    assert (user, model) == (world.user, MODEL)
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT, COMPLETION)
    assert answer.cost == cost_usd == cost == world.spent()


@pytest.mark.parametrize(("reports_cost", "cost"), [(True, NAMED), (False, PRICED)])
@pytest.mark.parametrize(
    "library", [each for each in LIBRARIES if each.name == "openai"], ids=lambda each: each.name
)
def test_stream_that_requests_its_usage_as_openrouter_does(
    library: Library, reports_cost: bool, cost: Decimal, world: World
) -> None:
    world.connect()
    world.model.reports_cost = reports_cost
    chunks = world.driver(library).create(
        model=MODEL,
        messages=says("What is the weather in Paris?"),
        stream=True,
        extra_body={"usage": {"include": True}},
    )
    *_, last = chunks
    assert Decimal(str(last.usage.cost)) == cost
    assert last.usage.prompt_tokens == PROMPT
