"""The answers of a test's model, and its failures."""

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

#: A word of an answer, with the white space behind it.
_WORD = re.compile(r"\s*\S+\s*|\s+")

FailOn = Literal["model", "token", "status", "disconnect", "models"]
"""The kinds of requests that a test can let fail."""

MakeError = Callable[[], WattfareError]


class Reply(NamedTuple):
    """An answer of the model.

    Attributes:
        words: words with their white space. Each is a token, and an event of a stream.
        cost: in nano-dollars; None: the price of its tokens.
        prompt_tokens: None: the words of the prompt.
        completion_tokens: None: the words of the answer.
        pause: the time before each word, in seconds.
        times: how many calls it answers; None: all calls until the next reply.
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
        """True if limits must not shorten it."""
        return bool(self.tool_calls) or self.cost is not None or self.completion_tokens is not None


class Fault(NamedTuple):
    """A failure of a call.

    Attributes:
        make_error: creates the error; None: the connection is closed.
        after: how many events of a stream come first; None: the call fails as a whole.
        on: the kind of request that fails.
    """

    make_error: MakeError | None
    after: int | None = None
    on: FailOn = "model"


class Script:
    """The replies and failures of one test. It is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._replies: deque[Reply] = deque()
        self._stays = False  # the first reply has been used
        self._faults: list[Fault] = []
        #: The numbers of the tool calls.
        self.numbers = itertools.count(1)

    def add_reply(self, reply: Reply) -> None:
        """Add a reply after the present ones."""
        with self._lock:
            if self._stays:
                self._replies.popleft()
                self._stays = False
            self._replies.append(reply)

    def add_fault(self, fault: Fault, times: int) -> None:
        """Let this many calls fail."""
        with self._lock:
            self._faults.extend([fault] * times)

    def take_reply(self) -> tuple[Reply | None, Callable[[], None]]:
        """The reply for the next call, and a function that returns it to the script. None if there
        is no reply."""
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
        """The first failure that applies to the call, if any."""
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
    """Split a text into words. Joined, they give the text."""
    return tuple(_WORD.findall(text))


def tool_calls_in(given: Iterable[object], numbers: Iterator[int]) -> tuple[ToolCall, ...]:
    """The tool calls that a test has given, in any of their forms.

    Args:
        numbers: for the ids of those that have none.

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
    # A library may refuse an id that it knows from an earlier turn.
    return ToolCall(id=fields.get("id") or f"call_{next(numbers)}", name=name, arguments=arguments)
