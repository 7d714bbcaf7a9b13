"""If the user can fix an error, the error links to the page of their budget."""

from __future__ import annotations

from typing import Any

from support.service import App, bearer, chat_body

SLOW: dict[str, Any] = {"model": "wattfare/echo-slow", "stream": True}


def budget_page(app: App) -> str:
    """The service listens on the loopback address. Its pages are on localhost."""
    return app.service.url.replace("127.0.0.1", "localhost") + "/budget"


def error_in(answer: Any) -> dict[str, Any]:
    return answer.json()["error"]


def test_budget_errors_link_to_the_budget_page(app: App) -> None:
    page = budget_page(app)
    assert error_in(app.chat())["manageUrl"] == page
    app.connect(monthlyUsd=0)
    refusal = error_in(app.chat())
    assert (refusal["code"], refusal["manageUrl"]) == ("budget_exceeded", page)


def test_other_errors_do_not_link_to_the_budget_page(app: App) -> None:
    app.connect()
    assert "manageUrl" not in error_in(app.chat(model="no/such"))
    assert "manageUrl" not in error_in(app.http.get("/connections", headers=bearer("x")))


def test_final_event_of_a_stream_links_to_the_budget_page(app: App) -> None:
    app.connect()
    body = chat_body("w " * 200, **SLOW)
    with app.http.stream(
        "POST", "/chat/completions", json=body, headers=app.paid_by("u1")
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        app.http.delete("/connections", headers=bearer(app.token()))
        events = [line for line in lines if "error" in line]
    assert f'"manageUrl":"{budget_page(app)}"' in events[-1]
