"""An error has the URL of the user's budget page, in every form of the error."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from wattfare_mw import WattfareBudgetExceededError, sse, to_wattfare_error
from wattfare_mw.errors import error_from_answer

pytestmark = pytest.mark.fast
URL = "https://wattfare.example/budget"


def body(url: object = URL) -> bytes:
    fields = {"code": "budget_exceeded", "message": "No.", "manageUrl": url}
    return json.dumps({"error": fields}).encode()


def test_manage_url_is_read_and_written() -> None:
    error = error_from_answer(402, body())
    assert error.manage_url == URL
    assert error.to_wire()["error"]["manageUrl"] == URL
    assert pickle.loads(pickle.dumps(error)).manage_url == URL
    assert "manageUrl" not in WattfareBudgetExceededError().to_wire()["error"]


def test_manage_url_in_a_stream() -> None:
    error = sse.error_in(body())
    assert error is not None
    assert error.manage_url == URL


def test_manage_url_through_a_library() -> None:
    class StatusError(Exception):
        status_code = 402
        body: Any = json.loads(body())["error"]

    error = to_wattfare_error(StatusError())
    assert error is not None
    assert error.manage_url == URL


@pytest.mark.parametrize(
    "url",
    [
        None,
        7,
        "",
        "javascript:alert(1)",
        "//evil.example",
        "https://a/\n",
        "https://a/" + "b" * 2048,
    ],
)
def test_invalid_manage_url_is_left_out(url: object) -> None:
    assert error_from_answer(402, body(url)).manage_url is None
