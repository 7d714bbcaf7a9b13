"""What all drivers share: where to call, and what an answer contains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Protocol
from urllib.parse import unquote

from libraries.model import TEXT
from wattfare_mw import Wattfare
from wattfare_mw.handles import User

QUESTION = "What is the weather in Paris?"


@dataclass(frozen=True)
class Endpoint:
    """Where a library sends its calls.

    Attributes:
        url: the ``base_url`` of an OpenAI client.
        headers: name the user who pays.
    """

    url: str
    key: str
    headers: Mapping[str, str]
    model: str


@dataclass(frozen=True)
class Tokens:
    """The content of a library's own usage object. None if it has no name for a value."""

    prompt: int | None
    completion: int | None
    total: int | None = None
    cached: int | None = None
    reasoning: int | None = None


@dataclass(frozen=True)
class Answer:
    """What a library returned.

    Attributes:
        cost: the cost in its usage object, in USD; None if it drops the cost.
        pieces: how many pieces of text a stream gave.
    """

    text: str
    usage: Tokens | None = None
    cost: Decimal | None = None
    pieces: int = 1
    more: dict[str, Any] = field(default_factory=dict)


class Driver(Protocol):
    """One library.

    Attributes:
        shows_cost: the methods after which the library shows ``usage.cost``.
        drops_usage: the methods after which the library has no usage.
        lacks: the cases that the library does not support, and why.
        hears_late: True if its streams yield nothing before their end.
        typed: True if it raises a ``WattfareError`` itself.
        drops_fields: True if its errors in a stream have a code and a message only.
        text: the text that it returns for the model's answer.
    """

    shows_cost: ClassVar[frozenset[str]] = frozenset()
    drops_usage: ClassVar[frozenset[str]] = frozenset()
    lacks: ClassVar[Mapping[str, str]] = {}
    hears_late: ClassVar[bool] = False
    typed: ClassVar[bool] = False
    drops_fields: ClassVar[bool] = False
    text: ClassVar[str] = TEXT

    def __init__(self, endpoint: Endpoint) -> None: ...

    def ask(self, text: str = QUESTION) -> Answer:
        """Sends a question. Returns the whole answer."""
        ...

    def stream(self, heard: Callable[[str], object] = ...) -> Answer:
        """Sends a question and calls ``heard`` with each piece of the answer."""
        ...

    def tools(self) -> Answer:
        """Sends a question whose answer needs :func:`weather`. Returns the last answer."""
        ...

    def stream_tools(self) -> Answer:
        """The same as streams."""
        ...

    def structured(self) -> tuple[str, str]:
        """The name and the country of a city, parsed by the library."""
        ...

    def image(self, data: bytes) -> Answer:
        """A question about a PNG."""
        ...

    def pdf(self, data: bytes) -> Answer:
        """A question about a PDF."""
        ...

    def second_turn(self) -> Answer:
        """A question, and another one that includes the first answer."""
        ...


def user_of(endpoint: Endpoint) -> User:
    """The user who pays, from a client that retries no call."""
    wf = Wattfare(endpoint.key, base_url=endpoint.url, max_retries=0)
    return wf.user(unquote(endpoint.headers["X-Wattfare-User"]))


def ignore(_text: str) -> None:
    """For callers that need only the whole answer."""


def cost_of(usage: Any) -> Decimal | None:
    """The ``cost`` in a usage object or dict, exactly as it was sent."""
    cost = usage.get("cost") if isinstance(usage, Mapping) else getattr(usage, "cost", None)
    return None if cost is None else Decimal(str(cost))


def openai_tokens(usage: Any) -> Tokens:
    """The tokens of a usage in the format of the openai package."""
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Tokens(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        prompt and prompt.cached_tokens,
        completion and completion.reasoning_tokens,
    )


def says(text: str) -> list[Any]:
    """A user's message."""
    return [{"role": "user", "content": text}]


def weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."
