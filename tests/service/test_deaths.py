"""`kill -9` of serving processes at random moments under load. The ledger stays correct, and the
bills match the upstream's counts. Each call in flight may lose a tenth of its reservation, and what
was sent after the last renewal."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from statistics import median

import httpx
from sqlalchemy import RowMapping, text
from support.forked import run_forked
from support.http_client import http_client
from support.service import bearer, chat_body, eventually, run_cli
from support.upstream import Exchange, chunk_of, completion_of, run_upstream

from wattfare_mw.service import create_keys
from wattfare_mw.service.chat.meter import estimate_tokens
from wattfare_mw.service.inference.runner import FORWARD_SECONDS
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.types import encode

#: Deaths on each of the two databases. `make test-long` runs a hundred.
DEATHS = int(os.environ.get("WATTFARE_TEST_KILLS", "6"))
#: This many processes can be killed at a time. One more is never killed.
MORTALS = 3
#: A process dies at the latest when the upstream has sent this many words to its clients.
MOST_WORDS_OF_LIFE = 300
#: The lengths of the requested answers, in words: some are complete before any death.
LENGTHS = (12, 40, 250)
#: Seconds for each word.
PAUSE = 0.02
#: The upstream is at most this many words ahead of its client: a process that gets no CPU time
#: receives no words.
AHEAD = 3
#: The cost of a stream is checked every 0.3 s, and recorded if it has grown by a tenth of the
#: reservation. An overloaded machine may take longer. A stream that can no longer be recorded is
#: cut off, so the delay is bounded.
LOOKED_AT_SECONDS = 1.0
#: The prompt tokens of each call, and the price of tokens in nano-dollars.
PROMPT = estimate_tokens(encode(chat_body("x")["messages"]))
PROMPT_NANOS, WORD_NANOS = 1000, 2000


@dataclass(eq=False)
class Life:
    """A serving process, from its start to its death."""

    url: str
    words: int  # words left before its death
    due: threading.Event = field(default_factory=threading.Event)
    dead: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def word(self) -> None:
        """One of its clients receives a word."""
        with self._lock:
            self.words -= 1
            if self.words == 0:
                self.due.set()


@dataclass(eq=False)
class Call:
    """A call, as the upstream and the client saw it."""

    life: Life
    said: int = 0
    delivered: bool = False
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AHEAD))


class Counting:
    """An upstream that sends one word at a time and counts them."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.reached: set[str] = set()
        self.over = threading.Event()  # set once all pauses end

    def __call__(self, exchange: Exchange) -> None:
        name = exchange.headers["x-request-id"]
        call, words = self.calls[name], exchange.json["max_tokens"]
        self.reached.add(name)
        usage = {"prompt_tokens": 1, "completion_tokens": words}
        stream = exchange.json.get("stream")
        if stream:
            exchange.start_stream()
        for _ in range(words):
            if stream:
                assert call.room.acquire(timeout=60)
            call.said += 1
            call.life.word()
            if stream:
                exchange.word("wor ")  # four bytes count as one token
            self.over.wait(PAUSE)
        if stream:
            exchange.event(chunk_of({"choices": [], "usage": usage}))
            exchange.done()
        else:
            exchange.answer(completion_of("wor " * words, usage=usage))


def make_calls(
    life: Life, count: Counting, headers: dict[str, str], seed: int, stream: bool
) -> None:
    """Makes one call after another until the process is dead or the test ends."""
    chance = random.Random(seed)
    url = f"{life.url}/api/v1"
    with http_client(base_url=url) as client:
        while not count.over.is_set():
            name = secrets.token_hex(8)
            call = count.calls[name] = Call(life)
            body = chat_body(
                "x", model="fake/model", stream=stream, max_tokens=chance.choice(LENGTHS)
            )
            try:
                with client.stream(
                    "POST",
                    "/chat/completions",
                    json=body,
                    headers={**headers, "x-request-id": name},
                ) as answer:
                    for line in answer.iter_lines():
                        if '"content"' in line:
                            call.room.release()
                        call.delivered |= line == "data: [DONE]"
                    call.delivered |= answer.status_code == 200 and not stream
                # the process has lost its lease, as can happen on a busy machine
                if answer.status_code != 200:
                    count.over.wait(PAUSE)
            except httpx.HTTPError:
                assert life.dead
                return
            finally:
                call.room.release(max(LENGTHS))


@contextmanager
def under_load(
    life: Life, count: Counting, headers: dict[str, str], chance: random.Random
) -> Iterator[None]:
    """Runs streams, and one call without a stream, while the process lives."""
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(make_calls, life, count, headers, chance.randrange(2**32), stream)
            for stream in (True, True, True, False)
        ]
        yield
    for call in calls:
        call.result()


def test_sudden_deaths_keep_the_ledger_correct(database: str) -> None:
    keys = create_keys(database, "test app")
    headers = {**bearer(keys.secret_key), "x-wattfare-user": "u1"}
    count = Counting()
    with run_upstream(count) as upstream:

        def serving() -> AbstractContextManager[tuple[BaseProcess, str]]:
            return run_forked(database=database, upstream=upstream.url, stop_grace=60)

        def live_and_die(number: int) -> None:
            chance = random.Random(number)
            with serving() as (process, url):
                life = Life(url, chance.randint(1, MOST_WORDS_OF_LIFE))
                with under_load(life, count, headers, chance):
                    assert life.due.wait(60)
                    time.sleep(chance.uniform(0, PAUSE))  # also between two words
                    life.dead = True
                    process.kill()
                    process.join()
            if number % 10 == 9:
                assert read_database(database, verify) == []

        with serving() as (_, url):
            connect(url, keys.secret_key)
            immortal = Life(url, 10**9)
            with under_load(immortal, count, headers, random.Random(DEATHS)):
                try:
                    with ThreadPoolExecutor(MORTALS) as pool:
                        list(pool.map(live_and_die, range(DEATHS)))
                finally:
                    count.over.set()
            eventually(lambda: not reserved(database))
    assert "consistent" in run_cli("ledger", "verify", "--database", database).stdout
    compare(count, read_database(database, lambda sql: list(rows_of(sql))))


def connect(url: str, secret_key: str) -> None:
    with http_client(base_url=f"{url}/api/v1") as client:
        answer = client.post("/sessions", json={"appUserId": "u1"}, headers=bearer(secret_key))
        token = answer.json()["token"]
        assert client.post("/connections", headers=bearer(token)).status_code == 200


def reserved(url: str) -> int:
    return read_database(
        url, lambda sql: sql.execute(text("SELECT count(*) FROM reservations")).scalar_one()
    )


def compare(count: Counting, rows: list[RowMapping]) -> None:
    """Compares each row with what the upstream and the client saw of its call."""
    ended = Counter(row["ended"] for row in rows)
    # Nearly always, several calls are in flight at a death.
    assert ended["expired"] + ended["abandoned"] >= DEATHS, ended
    assert ended["completed"] >= DEATHS, ended
    lags: list[float] = []  # in words
    by_call = {row["request_id"]: row for row in rows}
    assert len(by_call) == len(rows)
    assert count.reached <= set(by_call)
    for name, row in by_call.items():
        call = count.calls[name]
        tokens, cost = row["completion_tokens"], row["billed_nanos"]
        if row["ended"] == "abandoned":  # the cost is unknown
            assert not call.delivered
            assert cost == row["reserved_nanos"]
            continue
        assert cost == row["prompt_tokens"] * PROMPT_NANOS + tokens * WORD_NANOS
        if row["ended"] == "completed":
            assert tokens == call.said
        else:
            assert not call.delivered
            assert tokens <= call.said
            # Either nothing is recorded yet, or the last check recorded all but a tenth of the
            # reservation.
            lost = PROMPT * PROMPT_NANOS + call.said * WORD_NANOS - cost
            since = (lost - row["reserved_nanos"] / 10) / WORD_NANOS
            assert since <= FORWARD_SECONDS / PAUSE + AHEAD, dict(row)
            if call.said > LOOKED_AT_SECONDS / PAUSE:
                lags.append(since)
    if not lags:  # with few deaths, perhaps no stream ran for longer than a second
        assert DEATHS < 50
        return
    assert median(lags) <= LOOKED_AT_SECONDS / PAUSE
