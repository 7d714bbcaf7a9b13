"""The replies and the failures that a test has set."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, cast

import msgspec

from ..completions import ToolCall
from ..errors import WattfareError

#: A word with the white space after it.
_WORD = re.compile(r"\s*\S+\s*|\s+")

FailOn = Literal["model", "token", "status", "disconnect", "models"]
"""The kinds of requests that a test can make fail."""

MakeError = Callable[[], WattfareError]


class Reply(NamedTuple):
    """A reply of the model.

    Attributes:
        words: the words with their white space. Each word is one token, and one event of a stream.
        cost: the cost, in nano-dollars. None for the price of the tokens.
        prompt_tokens: the billed tokens of the prompt. None for the number of its words.
        completion_tokens: the billed tokens of the answer. None for the number of its words.
        pause: the time before each word, in seconds.
        times: how many calls get this reply. None for all calls until the next reply.
    """

    words: tuple[str, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    cost: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    pause: float = 0
    times: int | None = None

    @property
    def is_whole(self) -> bool:
        """True if a token limit must not shorten the reply."""
        return bool(self.tool_calls) or self.cost is not None or self.completion_tokens is not None


class Fault(NamedTuple):
    """A failure of a call.

    Attributes:
        make_error: creates the error. None closes the connection.
        after: how many events of a stream come before the failure. None if the call fails at once.
        on: the kind of request that fails.
    """

    make_error: MakeError | None
    after: int | None = None
    on: FailOn = "model"


class Script:
    """The replies and the failures of one test. It is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._replies: deque[Reply] = deque()
        self._stays = False  # True once the first reply has been used
        self._faults: list[Fault] = []
        #: Numbers for the ids of tool calls.
        self.numbers = itertools.count(1)

    def add_reply(self, reply: Reply) -> None:
        """Add a reply after the existing ones."""
        with self._lock:
            if self._stays:
                self._replies.popleft()
                self._stays = False
            self._replies.append(reply)

    def add_fault(self, fault: Fault, times: int) -> None:
        """Make this many calls fail."""
        with self._lock:
            self._faults.extend([fault] * times)

    def take_reply(self) -> tuple[Reply | None, Callable[[], None]]:
        """Take the reply for the next call. Returns it with a function that gives it back to the
        script. None if there is no reply."""
        with self._lock:
            if not self._replies:
                return None, _nothing
            reply = self._replies[0]
            if reply.times is None and len(self._replies) == 1:
                self._stays = True
                return reply, _nothing
            if reply.times is None or reply.times == 1:
                self._replies.popleft()
            else:
                self._replies[0] = reply._replace(times=reply.times - 1)
            taken = reply if reply.times is None else reply._replace(times=1)
        return reply, lambda: self._give_back(taken)

    def take_fault(self, wanted: Callable[[Fault], bool]) -> Fault | None:
        """Take the first failure for which ``wanted`` is True. None if there is none."""
        with self._lock:
            for index, fault in enumerate(self._faults):
                if wanted(fault):
                    return self._faults.pop(index)
        return None

    def _give_back(self, reply: Reply) -> None:
        with self._lock:
            self._replies.appendleft(reply)


def _nothing() -> None:
    pass


def words_in(text: str) -> tuple[str, ...]:
    """Split a text into words with their white space, so that joining them gives the text again."""
    return tuple(_WORD.findall(text))


def tool_calls_in(given: Iterable[object], numbers: Iterator[int]) -> tuple[ToolCall, ...]:
    """Convert the tool calls that a test has passed.

    Args:
        numbers: numbers for the ids of tool calls without an id.

    Raises:
        TypeError: a tool call has an unsupported form.
    """
    return tuple(_tool_call(call, numbers) for call in given)


def _tool_call(given: object, numbers: Iterator[int]) -> ToolCall:
    if isinstance(given, ToolCall):
        return given
    fields: Mapping[str, Any] = {}
    if isinstance(given, Mapping):
        fields = cast("Mapping[str, Any]", given)
        inner = fields.get("function")
        if isinstance(inner, Mapping):
            fields = {"id": fields.get("id"), **cast("Mapping[str, Any]", inner)}
    elif isinstance(given, tuple) and len(cast("tuple[object, ...]", given)) == 2:
        name, arguments = cast("tuple[object, object]", given)
        fields = {"name": name, "arguments": arguments}
    name, arguments = fields.get("name"), fields.get("arguments", {})
    if not isinstance(name, str) or not name:
        raise TypeError(
            'A tool call is a pair such as ("get_weather", {"city": "Paris"}), or an object with '
            "a `name` and `arguments`."
        )
    if not isinstance(arguments, str):
        try:
            arguments = json.dumps(arguments)
        except (TypeError, ValueError):
            arguments = msgspec.json.encode(arguments).decode()
    # Use a new number for each id, because a library may refuse a repeated id.
    return ToolCall(id=fields.get("id") or f"call_{next(numbers)}", name=name, arguments=arguments)
