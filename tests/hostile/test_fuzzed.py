"""Runs the targets of the fuzzer, and keeps the faults it has found fixed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from fuzz import runner

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat.meter import Meter
from wattfare_mw.service.models import upstream_answers, upstream_errors, upstream_json
from wattfare_mw.service.models.credential import Credential
from wattfare_mw.service.models.price_lists import Unpriced, read_prices

#: Python's Decimal cannot hold an exponent with this many digits.
FAR = b"1e99999999999999999999"
NO_KEY = Credential(None)


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """The middleware's fuzz target listens to the log."""
    logger = logging.getLogger("wattfare_mw")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.mark.parametrize("name", runner.TARGETS)
def test_generated_input_is_read_or_refused(name: str) -> None:
    runner.fuzz([name], 400, None, seed=1)


def test_failed_target_prints_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def target(random: runner.Random) -> None:
        seen.append(random.getrandbits(64))
        assert len(seen) < 3

    monkeypatch.setitem(runner.TARGETS, "mine", lambda: target)
    with pytest.raises(runner.FuzzFailedError, match="--seed 7 --target mine --only 2"):
        runner.fuzz(["mine"], 10, None, seed=7)
    with pytest.raises(AssertionError):
        runner.run_one("mine", 7, 2)
    assert seen[-1] == seen[-2]


def test_each_input_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def target(_: runner.Random) -> None:
        while True:
            pass

    monkeypatch.setitem(runner.TARGETS, "mine", lambda: target)
    monkeypatch.setattr(runner, "PATIENCE", 0.01)
    with pytest.raises(runner.FuzzFailedError, match="TooSlowError"):
        runner.fuzz(["mine"], 10, None, seed=1)


@pytest.mark.parametrize("body", [b'{"choices": [], "x": %b}', b'{"choices": [], "x": [NaN, %b]}'])
def test_out_of_range_number_in_an_answer_is_an_upstream_failure(body: bytes) -> None:
    for read in (upstream_answers.read_completion, upstream_answers.read_chunk):
        with pytest.raises(WattfareError) as failure:
            read(body % FAR, Meter(None, 1), NO_KEY)
        assert (failure.value.code, failure.value.status) == ("upstream", 502)
    error = upstream_errors.failure(418, b'{"error": {"code": %b}}' % FAR, {}, NO_KEY)
    assert error.code == "invalid_request"


def test_out_of_range_price_hides_no_other_model() -> None:
    prices = b'{"data": [{"id": "m", "pricing": {"prompt": %b}}, {"id": "n"}]}' % FAR
    assert read_prices(prices) == {"n": Unpriced.NOT_LISTED}


@pytest.mark.parametrize("body", [b'{"error": %b}', b'{"choices": %b}', b"[NaN, %b]"])
@pytest.mark.parametrize("inner", [b"[" * 70 + b"]" * 70, b"[%b0]" % (b"0," * 1_100_000)])
def test_answer_with_too_many_values_is_not_decoded(
    body: bytes, inner: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stall the process: the decoder does not release the interpreter lock."""
    monkeypatch.setattr(upstream_json, "decode_strictly", None)
    with pytest.raises(WattfareError) as failure:
        upstream_answers.read_chunk(body % inner, Meter(None, 1), NO_KEY)
    assert (failure.value.code, failure.value.status) == ("upstream", 502)
    error = upstream_errors.failure(500, body % inner, {}, NO_KEY)
    assert error.message == "The upstream failed (500)."
