"""`kill -9` of serving processes, at random moments and under load: the books stay right, and what
was billed is what the upstream counts. What may be lost of each call in flight is a tenth of its
reservation, and what was said since the last renewal."""

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
from support.service import bearer, chat_body, eventually, run_cli
from support.upstream import Exchange, chunk_of, completion_of, run_upstream

from wattfare_mw.service import create_keys
from wattfare_mw.service.chat.meter import estimate_tokens
from wattfare_mw.service.inference.runner import FORWARD_SECONDS
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.types import encode

#: Deaths on each of the two databases. `make test-long` has a hundred.
DEATHS = int(os.environ.get("WATTFARE_TEST_KILLS", "12"))
#: So many processes are mortal at a time; one beside them is not.
MORTALS = 3
#: A process dies when the upstream has said so many words to its clients, at most.
MOST_WORDS_OF_LIFE = 300
#: The lengths of the answers that are asked for, in words: some are complete before any death.
LENGTHS = (12, 40, 250)
#: Seconds for a word.
PAUSE = 0.02
#: The upstream is no more than so many words ahead of what its client has read: a process that
#: gets no turn hears no words either.
AHEAD = 3
#: What a stream has cost is looked at every 0.3 s, and recorded if it has grown by a tenth of the
#: reservation. A machine with more to do than it can may take its time, but a stream that cannot be
#: recorded any more is cut off, so that there is a bound to it.
LOOKED_AT_SECONDS = 1.0
#: What the prompt of each call counts as, in tokens, and what tokens cost, in nano-dollars.
PROMPT = estimate_tokens(encode(chat_body("x")["messages"]))
PROMPT_NANOS, WORD_NANOS = 1000, 2000


@dataclass(eq=False)
class Life:
    """A serving process, from when it listens to its death."""

    url: str
    words: int  # that are left to it
    due: threading.Event = field(default_factory=threading.Event)
    dead: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def word(self) -> None:
        """One of its clients is told a word."""
        with self._lock:
            self.words -= 1
            if self.words == 0:
                self.due.set()


@dataclass(eq=False)
class Call:
    """A call, as the upstream and the client have seen it."""

    life: Life
    said: int = 0
    delivered: bool = False
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AHEAD))


class Counting:
    """An upstream that says a word at a time, and keeps its own count of them."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.reached: set[str] = set()
        self.over = threading.Event()  # from when on nobody pauses

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
                exchange.word("wor ")  # four bytes: what counts as a token
            self.over.wait(PAUSE)
        if stream:
            exchange.event(chunk_of({"choices": [], "usage": usage}))
            exchange.done()
        else:
            exchange.answer(completion_of("wor " * words, usage=usage))


def make_calls(
    life: Life, count: Counting, headers: dict[str, str], seed: int, stream: bool
) -> None:
    """One call after the other, until the process is dead or all is over."""
    chance = random.Random(seed)
    url = f"{life.url}/api/v1"
    # Not verified: what there is not, need not be read from the disk for each.
    with httpx.Client(base_url=url, timeout=60, trust_env=False, verify=False) as client:
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
                if answer.status_code != 200:  # it has lost its lease: machines can be that busy
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
    """Streams, and a call without one, as long as the process lives."""
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(make_calls, life, count, headers, chance.randrange(2**32), stream)
            for stream in (True, True, True, False)
        ]
        yield
    for call in calls:
        call.result()


def test_sudden_deaths(database: str) -> None:
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
                    time.sleep(chance.uniform(0, PAUSE))  # between two words, too
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
    with httpx.Client(base_url=f"{url}/api/v1", trust_env=False) as client:
        answer = client.post("/sessions", json={"appUserId": "u1"}, headers=bearer(secret_key))
        token = answer.json()["token"]
        assert client.post("/connections", headers=bearer(token)).status_code == 200


def reserved(url: str) -> int:
    return read_database(
        url, lambda sql: sql.execute(text("SELECT count(*) FROM reservations")).scalar_one()
    )


def compare(count: Counting, rows: list[RowMapping]) -> None:
    """Hold each row to what the upstream and the client have seen of its call."""
    ended = Counter(row["ended"] for row in rows)
    # All but always there is more than one call in flight where a process dies.
    assert ended["expired"] + ended["abandoned"] >= DEATHS, ended
    assert ended["completed"] >= DEATHS, ended
    lags: list[float] = []  # in words
    by_call = {row["request_id"]: row for row in rows}
    assert len(by_call) == len(rows)
    assert count.reached <= set(by_call)
    for name, row in by_call.items():
        call = count.calls[name]
        tokens, cost = row["completion_tokens"], row["billed_nanos"]
        if row["ended"] == "abandoned":  # nobody knows any more
            assert not call.delivered
            assert cost == row["reserved_nanos"]
            continue
        assert cost == row["prompt_tokens"] * PROMPT_NANOS + tokens * WORD_NANOS
        if row["ended"] == "completed":
            assert tokens == call.said
        else:
            assert not call.delivered
            assert tokens <= call.said
            # Nothing is recorded so far, or all but a tenth of the reservation was, when it was
            # last looked at.
            lost = PROMPT * PROMPT_NANOS + call.said * WORD_NANOS - cost
            since = (lost - row["reserved_nanos"] / 10) / WORD_NANOS
            assert since <= FORWARD_SECONDS / PAUSE + AHEAD, dict(row)
            if call.said > LOOKED_AT_SECONDS / PAUSE:
                lags.append(since)
    assert len(lags) > 0
    assert median(lags) <= LOOKED_AT_SECONDS / PAUSE
