"""The libraries and the cases: what is tested, and what the page says of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: Names the libraries to test, with spaces in between; `all` for all that are installed.
VARIABLE = "WATTFARE_TEST_LIBRARIES"
#: In the matrix, if a library's usage has no cost.
DROPPED = "dropped"


@dataclass(frozen=True)
class Library:
    """One row of the matrix.

    Attributes:
        name: as `make test-libraries LIBRARIES=…` takes it.
        driver: the module in :mod:`libraries.drivers`.
        packages: the distributions whose versions are shown, the library's own first.
        example: the file in `examples/libraries` that the page shows.
        lock: the locked set that it is in.
        openai: the major version of the openai package that it stands on; None without it.
        through: calls go through this framework's middleware, or to the service itself.
        title: the heading of its section; None if an earlier row has one for both.
        how: the paragraph below it.
    """

    name: str
    driver: str
    packages: tuple[str, ...]
    example: str
    lock: str = "libraries"
    openai: int | None = 3
    through: str = "service"
    title: str | None = None
    how: str = ""

    def is_installed(self) -> bool:
        """Is it installed, on the right openai package?"""
        if self.openai is None:
            return True  # npm gets it
        try:
            self.versions()
            return version("openai").split(".")[0] == str(self.openai)
        except PackageNotFoundError:
            return False

    def versions(self) -> dict[str, str]:
        """The versions of its packages in this environment."""
        of = version if self.openai else npm_version
        return {package: of(package) for package in self.packages}

    def load(self) -> Any:
        """Its driver."""
        return import_module(f"libraries.drivers.{self.driver}").Driver


def npm_version(package: str) -> str:
    """The version that npm has installed for the tests."""
    from support.node import package_version

    return package_version(package)


_OPENAI_2: dict[str, Any] = {"lock": "libraries-openai-2", "openai": 2}

# ruff: noqa: E501 - a paragraph of the page is one line

LIBRARIES = (
    Library(
        "openai-of-user",
        "openai_of_user",
        ("openai",),
        "openai_sdk.py",
        title="openai",
        how="`user.openai()` gives an `openai.OpenAI`, and `user.async_openai()` an `openai.AsyncOpenAI`. All users of a client share its connections. Ask for the usage of a stream with `stream_options`. The usage has `cost` as an extra field. In a browser or a desktop app, use the middleware's path as `base_url`, and no secret key.",
    ),
    Library(
        "openai",
        "openai_library",
        ("openai",),
        "openai_sdk.py",
        through="starlette",
    ),
    Library(
        "langchain-of-user",
        "langchain_of_user",
        ("langchain-openai", "langgraph", "openai"),
        "langchain_chat.py",
        title="LangChain and LangGraph",
        how="`ChatWattfare` is a chat model for chains, agents and graphs. `response_metadata` of an answer has `cost_usd`; in a stream, the last chunk has it. `user` is never saved, and a cache of LangChain's keeps the answers of each user apart.",
    ),
    Library(
        "langchain",
        "langchain_library",
        ("langchain-openai", "langgraph", "openai"),
        "langchain_chat.py",
    ),
    Library(
        "pydantic-ai-of-user",
        "pydantic_ai_of_user",
        ("pydantic-ai-slim", "openai"),
        "pydantic_agent.py",
        title="pydantic-ai",
        how="Give a `WattfareProvider` to `OpenAIChatModel`. It knows the models by their vendors' names, as the provider for OpenRouter does. `OpenAIChatModel` reads the tokens and drops the cost. If the upstream of the service is OpenRouter, `OpenRouterModel` takes the same provider, and keeps the cost in `provider_details` of the response.",
    ),
    Library(
        "pydantic-ai",
        "pydantic_ai_library",
        ("pydantic-ai-slim", "openai"),
        "pydantic_agent.py",
    ),
    Library(
        "pydantic-ai-openrouter",
        "pydantic_ai_openrouter",
        ("pydantic-ai-slim", "openai"),
        "pydantic_agent.py",
    ),
    Library(
        "openai-agents-of-user",
        "agents_of_user",
        ("openai-agents", "openai"),
        "openai_agent.py",
        title="openai-agents",
        how="Give a `WattfareModelProvider` to the run, and name the model in the agent. The cost of a whole answer is in `raw_usage` of each response; for a stream, set `ModelSettings(preserve_raw_usage=True)`. Tracing sends prompts to OpenAI if the environment has a key of OpenAI's: turn it off. It never gets a key of Wattfare's.",
    ),
    Library(
        "openai-agents",
        "agents_library",
        ("openai-agents", "openai"),
        "openai_agent.py",
    ),
    Library(
        "litellm",
        "litellm_library",
        ("litellm", "openai"),
        "litellm_completion.py",
        title="litellm",
        how="Give it the client of a user as `client`. Put `openai/` in front of the model's name, so that litellm speaks OpenAI's protocol. The usage has `cost`; `response_cost` of litellm is its own estimate.",
    ),
    Library(
        "llm",
        "llm_library",
        ("llm", "openai"),
        "llm_model.py",
        title="llm",
        how="Make a `Chat` model with `api_base` and `headers`. The command `llm` takes the same names in `extra-openai-models.yaml`. It asks for the usage of a stream by itself. The cost is in `details` of `response.usage()`.",
    ),
    Library(
        "ai-sdk",
        "ai_sdk",
        ("ai", "@ai-sdk/openai-compatible"),
        "ai_sdk.mjs",
        openai=None,
        through="flask",
        title="Vercel AI SDK",
        how="In a browser, `baseURL` is the path of the app's own middleware, and the app's cookie says who the user is. `includeUsage` asks for the usage of a stream. The cost is in `usage.raw` of a whole answer, and of each `finish-step` of a stream.",
    ),
    Library("openai-2-of-user", "openai_of_user", ("openai",), "openai_sdk.py", **_OPENAI_2),
    Library("openai-2", "openai_library", ("openai",), "openai_sdk.py", **_OPENAI_2),
    Library(
        "instructor",
        "instructor_library",
        ("instructor", "openai"),
        "instructor_create.py",
        title="instructor",
        how="Give it the client of a user. `create_with_completion` returns the completion too, with its usage and its cost. `create_partial` gives no usage, and reads the whole stream before it gives the first part. Each of its retries is a call that the user pays for.",
        **_OPENAI_2,
    ),
    Library(
        "llama-index",
        "llama_index_library",
        ("llama-index-llms-openai-like", "llama-index-core", "openai"),
        "llama_index_chat.py",
        title="LlamaIndex",
        how="Give `OpenAILike` the client of a user. It takes any model's name. Say that it is a chat model, and that it can call tools. Ask for the usage of a stream with `stream_options`; it is in `raw` of the last chunk.",
        **_OPENAI_2,
    ),
)
BY_NAME = {library.name: library for library in LIBRARIES}

#: The columns of the matrix, and what each shows.
CASES = {
    "JSON": "A whole answer, with the tokens that the service reported",
    "stream": "The same as a stream; the usage comes at its end",
    "cost": "Where the library's own usage object holds `usage.cost`",
    "tools": "A tool is called, its result is sent back, and an answer comes",
    "streamed tools": "The same as streams",
    "structured": "An answer in a schema, parsed by the library",
    "image": "A PNG in the request",
    "PDF": "A PDF in the request",
    "second turn": "What came back is sent again with the next question",
    "not_connected": "`to_wattfare_error` finds it in the library's exception, JSON and stream",
    "budget_exceeded": "The same",
    "cap in a run": "The same, of a cap that is reached between two calls of one run",
    "rate_limited": "The same, with its `retry_after`",
    "mid-stream": "The same, of a stream that breaks off",
    "revoked": "The same, of a stream whose user takes the budget back",
}

#: What does not work yet and why, by case, or by library and case. The page says "no" for it.
XFAIL: dict[str | tuple[str, str], str] = {}


def fails(library: str, case: str) -> str | None:
    """Why this does not work yet, or None if it does."""
    return XFAIL.get((library, case)) or XFAIL.get(case)


def choose(names: Iterable[str]) -> list[Library]:
    """The libraries of these names; `all` is all of them."""
    names = list(dict.fromkeys(names))
    if unknown := {*names} - {*BY_NAME, "all"}:
        raise SystemExit(
            f"No such library: {', '.join(sorted(unknown))}. Known: {', '.join(BY_NAME)}"
        )
    return list(LIBRARIES) if "all" in names else [BY_NAME[name] for name in names]


def selected() -> list[Library]:
    """The libraries to test in this process."""
    named = choose(os.environ.get(VARIABLE, "").split())
    return [library for library in named if library.is_installed()]
