"""The libraries and the cases: what is tested, and what the page says about it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: The libraries to test, separated by spaces; `all` for all installed ones.
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
        """True if it is installed with the right openai package."""
        if self.openai is None:
            return True  # npm installs it
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
        """Returns its driver."""
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
        how="`user.openai()` returns an `openai.OpenAI`. `user.async_openai()` returns an `openai.AsyncOpenAI`. To get the usage of a stream, set `stream_options`. The usage has the cost in the extra field `cost`. In a browser or a desktop app, use your web app's `/api/wattfare` as `base_url`, without the secret key.",
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
        how="`ChatWattfare` is a chat model for chains, agents and graphs. The cost is `cost_usd` in the `response_metadata` of an answer, or of the last chunk of a stream. If you serialize the model, the result does not contain `user`. LangChain's cache keeps the answers of each user separate. An answer from the cache has a `cost_usd` of 0. If you change `user`, the new user pays for all later calls.",
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
        how="Pass a `WattfareProvider` to `OpenAIChatModel`. A model's name begins with its vendor, as in `openai/gpt-5`. `OpenAIChatModel` reads the tokens, but not the cost. If the service's upstream is OpenRouter, you can pass the same provider to `OpenRouterModel`. Its responses have the cost in `provider_details`.",
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
        how="Pass a `WattfareModelProvider` to the run, and set the model in the agent. The cost is in `raw_usage` of each response. To keep it in a stream, set `ModelSettings(preserve_raw_usage=True)`. If the environment has an OpenAI key, the library's tracing sends prompts to OpenAI, so turn tracing off. Tracing never gets a Wattfare key.\n\nA tool can call a model itself. If the budget is spent during such a call, openai-agents sends the text of the error to the model and continues the run. To end the run instead, create the tool with `@function_tool(failure_error_function=None)`, or a nested agent with `agent.as_tool(…, failure_error_function=None)`. The run then raises an error of openai-agents. `to_wattfare_error(error)` finds the `WattfareBudgetExceededError` in this error.",
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
        how="Pass the user's openai client as `client`. Write `openai/` before the model's name, so that litellm uses OpenAI's protocol. The usage has the cost in `cost`. `response_cost` is litellm's own estimate.",
    ),
    Library(
        "llm",
        "llm_library",
        ("llm", "openai"),
        "llm_model.py",
        title="llm",
        how="Create a `Chat` model with `api_base` and `headers`. To use the command `llm`, set the same names in `extra-openai-models.yaml`. A stream always has its usage. The cost is in the `details` of `response.usage()`.",
    ),
    Library(
        "ai-sdk",
        "ai_sdk",
        ("ai", "@ai-sdk/openai-compatible"),
        "ai_sdk.mjs",
        openai=None,
        through="flask",
        title="Vercel AI SDK",
        how="In a browser, set `baseURL` to the app's `/api/wattfare`. The app's cookie identifies the user. To get the usage of a stream, set `includeUsage`. The cost is in the `usage.raw` of an answer, or of each `finish-step` of a stream.",
    ),
    Library("openai-2-of-user", "openai_of_user", ("openai",), "openai_sdk.py", **_OPENAI_2),
    Library("openai-2", "openai_library", ("openai",), "openai_sdk.py", **_OPENAI_2),
    Library(
        "instructor",
        "instructor_library",
        ("instructor", "openai"),
        "instructor_create.py",
        title="instructor",
        how="Pass the user's openai client. `create_with_completion` also returns the completion, with its usage and cost. `create_partial` returns no usage, and reads the whole stream before it returns the first part. The user pays for each retry of instructor.",
        **_OPENAI_2,
    ),
    Library(
        "llama-index",
        "llama_index_library",
        ("llama-index-llms-openai-like", "llama-index-core", "openai"),
        "llama_index_chat.py",
        title="LlamaIndex",
        how="Pass the user's openai client to `OpenAILike`, which accepts any model name. Set `is_chat_model` and `is_function_calling_model`. To get the usage of a stream, set `stream_options`. The usage is in `raw` of the last chunk.",
        **_OPENAI_2,
    ),
)
BY_NAME = {library.name: library for library in LIBRARIES}

#: The columns of the matrix, and what each shows.
CASES = {
    "JSON": "An answer as JSON, with the tokens that the service reported",
    "stream": "An answer as a stream, with its usage at the end",
    "cost": "The library's usage object has the cost, for JSON, for streams or for both. `dropped` means that the library removes the cost",
    "tools": "A tool call, its result, and the model's answer to the result",
    "streamed tools": "The same steps, but the answers are streams",
    "structured": "An answer with a schema, which the library parses",
    "image": "A PNG in the request",
    "PDF": "A PDF in the request",
    "second turn": "A second question, with the first answer in the request",
    "not_connected": "`to_wattfare_error` finds this error in the library's exception, for JSON and streams",
    "budget_exceeded": "`to_wattfare_error` finds this error, too",
    "cap in a run": "`to_wattfare_error` finds the error if the cap is reached between two calls of one run",
    "rate_limited": "`to_wattfare_error` finds this error, with its `retry_after`",
    "mid-stream": "`to_wattfare_error` finds the error if a stream breaks",
    "revoked": "`to_wattfare_error` finds the error if the user revokes the budget during a stream",
}

#: What does not work yet and why, by case, or by library and case. The page says "no" for it.
XFAIL: dict[str | tuple[str, str], str] = {}


def fails(library: str, case: str) -> str | None:
    """Why this does not work yet, or None if it does."""
    return XFAIL.get((library, case)) or XFAIL.get(case)


def choose(names: Iterable[str]) -> list[Library]:
    """The libraries of these names; `all` for all of them."""
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
