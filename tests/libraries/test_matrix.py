"""Each library passes each case of the matrix."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from support.patience import PATIENCE
from support.upstream import Exchange

from libraries.conftest import World
from libraries.drivers.base import Answer, Tokens
from libraries.model import (
    CACHED,
    COMPLETION,
    NAMED,
    PRICED,
    PROMPT,
    REASONING,
    TEXT,
    begin,
    has_attached,
    pdf,
    png,
)
from libraries.table import CASES, DROPPED, Library, fails, selected
from wattfare_mw import (
    WattfareBudgetExceededError,
    WattfareError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
    to_wattfare_error,
)

Check = Callable[[World, Library], str | None]
"""It may return what stands in the matrix in place of "yes"."""


def check_json(world: World, library: Library) -> None:
    world.connect()
    _right(world, library, "ask", world.driver(library).ask())


def check_stream(world: World, library: Library) -> None:
    world.connect()
    answer = world.driver(library).stream()
    assert answer.pieces > 1
    _right(world, library, "stream", answer)


def _right(world: World, library: Library, verb: str, answer: Answer) -> None:
    """Checks that the answer has its text and its tokens, and the cost that was billed."""
    driver = library.load()
    assert answer.text == driver.text
    if verb not in driver.drops_usage:
        assert answer.usage is not None
        assert answer.usage == Tokens(
            PROMPT,
            COMPLETION,
            answer.usage.total and PROMPT + COMPLETION,
            CACHED,
            REASONING,
        )
    assert world.spent() == NAMED


def check_cost(world: World, library: Library) -> str:
    """Checks the cost in JSON and in a stream, whether or not the upstream reports it."""
    world.connect()
    driver = world.driver(library)
    for world.model.reports_cost, cost in ((True, NAMED), (False, PRICED)):
        for verb in ("ask", "stream"):
            before = world.spent()
            shown = getattr(driver, verb)().cost
            assert shown == (cost if verb in driver.shows_cost else None), verb
            assert world.spent() - before == cost
    named = {"ask": "JSON", "stream": "stream"}
    return ", ".join(named[verb] for verb in named if verb in driver.shows_cost) or DROPPED


def check_tools(world: World, library: Library) -> None:
    world.connect()
    assert world.driver(library).tools().text == TEXT
    _tool_was_called(world)


def check_streamed_tools(world: World, library: Library) -> None:
    world.connect()
    assert world.driver(library).stream_tools().text == TEXT
    _tool_was_called(world)
    assert world.upstream.calls[0].json["stream"]


def _tool_was_called(world: World) -> None:
    assert len(world.upstream.calls) == 2
    *_, asked, result = world.upstream.calls[1].json["messages"]
    assert [call["id"] for call in asked["tool_calls"]] == ["call_1"]
    assert (result["role"], result["tool_call_id"]) == ("tool", "call_1")
    assert "It is sunny in Paris." in str(result["content"])
    assert world.spent() == 2 * NAMED


def check_structured(world: World, library: Library) -> None:
    world.connect()
    assert world.driver(library).structured() == ("Paris", "France")


def check_image(world: World, library: Library) -> None:
    world.connect()
    data = png()
    world.driver(library).image(data)
    assert has_attached(world.upstream.calls[-1].json, data)


def check_pdf(world: World, library: Library) -> None:
    world.connect()
    data = pdf()
    world.driver(library).pdf(data)
    assert has_attached(world.upstream.calls[-1].json, data)


def check_second_turn(world: World, library: Library) -> None:
    world.connect()
    answer = world.driver(library).second_turn()
    assert answer.text == library.load().text
    roles = [message["role"] for message in world.upstream.calls[-1].json["messages"]]
    assert roles.count("user") >= 2
    assert "assistant" in roles
    assert world.spent() == len(world.upstream.calls) * NAMED


def check_not_connected(world: World, library: Library) -> None:
    for error in _refusals(world, library):
        assert isinstance(error, WattfareNotConnectedError)


def check_budget_exceeded(world: World, library: Library) -> None:
    world.connect(monthly_usd=0)
    for error in _refusals(world, library):
        assert isinstance(error, WattfareBudgetExceededError)
        assert error.limited_by == "cap"
        assert error.remaining_usd == 0
        assert error.needed_usd
        assert error.resets_at


def check_cap_in_a_run(world: World, library: Library) -> None:
    """The model calls a tool, and the user lowers the cap before the tool returns."""
    world.connect()

    def lowers(exchange: Exchange) -> None:
        world.connect(monthly_usd=0)
        world.model(exchange)

    world.upstream.script = lowers
    error = _found(library, world.driver(library).tools)
    assert isinstance(error, WattfareBudgetExceededError)
    assert len(world.upstream.calls) == 1
    assert world.spent() == NAMED


def check_rate_limited(world: World, library: Library) -> None:
    world.connect()

    def busy(exchange: Exchange) -> None:
        answer = {"error": {"message": "Slow down.", "code": 429}}
        exchange.answer(answer, status=429, headers={"retry-after": "7"})

    world.upstream.script = busy
    for error in _refusals(world, library):
        assert isinstance(error, WattfareRateLimitError)
        assert error.retry_after == 7


def _refusals(world: World, library: Library) -> list[WattfareError]:
    """The typed errors that the library raises, for a whole answer and for a stream."""
    driver = world.driver(library)
    found = [_found(library, driver.ask), _found(library, driver.stream)]
    for error in found:
        assert error.status == error.http_status
        assert error.request_id
    return found


def check_mid_stream(world: World, library: Library) -> None:
    world.connect()

    def breaks(exchange: Exchange) -> None:
        begin(exchange)
        exchange.reset()

    world.upstream.script = breaks
    heard: list[str] = []
    error = _found(library, lambda: world.driver(library).stream(heard.append))
    assert error.code == "upstream"
    assert error.request_id or library.load().drops_fields
    assert heard or library.load().hears_late
    assert TEXT not in heard


def check_revoked(world: World, library: Library) -> None:
    world.connect()

    def goes_on(exchange: Exchange) -> None:
        space = begin(exchange)
        if library.load().hears_late:
            world.revoke()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            exchange.event(space)
            time.sleep(0.02)

    world.upstream.script = goes_on
    revoked: list[str] = []

    def revoke(piece: str) -> None:
        if not revoked:
            revoked.append(piece)
            world.revoke()

    error = _found(library, lambda: world.driver(library).stream(revoke))
    assert isinstance(error, WattfareNotConnectedError)
    assert error.request_id or library.load().drops_fields
    world.upstream.wait_gone()


def _found(library: Library, call: Callable[[], Any]) -> WattfareError:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
        call()
    error = to_wattfare_error(caught.value)
    assert error is not None, f"no typed error in {caught.value!r}"
    assert not library.load().typed or error is caught.value
    return error


CHECKS: dict[str, Check] = {
    "JSON": check_json,
    "stream": check_stream,
    "cost": check_cost,
    "tools": check_tools,
    "streamed tools": check_streamed_tools,
    "structured": check_structured,
    "image": check_image,
    "PDF": check_pdf,
    "second turn": check_second_turn,
    "not_connected": check_not_connected,
    "budget_exceeded": check_budget_exceeded,
    "cap in a run": check_cap_in_a_run,
    "rate_limited": check_rate_limited,
    "mid-stream": check_mid_stream,
    "revoked": check_revoked,
}


def _cells() -> list[Any]:
    cells: list[Any] = []
    for library in selected():
        lacks = library.load().lacks
        for case in CASES:
            marks: list[Any] = []
            if case in lacks:
                marks.append(pytest.mark.skip(reason=f"{library.name}: {lacks[case]}"))
            elif reason := fails(library.name, case):
                marks.append(pytest.mark.xfail(reason=reason, strict=False))
            cells.append(pytest.param(library, case, marks=marks, id=f"{library.name}-{case}"))
    return cells


@pytest.mark.parametrize(("library", "case"), _cells())
def test_library(
    library: Library, case: str, world: World, record_property: Callable[[str, Any], None]
) -> None:
    if cell := CHECKS[case](world, library):
        record_property("cell", cell)
