"""Writes ``docs/libraries.md``: the matrix of the last run, and how to use each library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from libraries.results import Result
from libraries.table import CASES, LIBRARIES, Library

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "libraries.md"
EXAMPLES = ROOT / "examples" / "libraries"

# ruff: noqa: E501 - a paragraph of the page is one line

_HEAD = """\
# AI libraries

Calls of an AI library are paid for by a user or a grant. Where it says `user` below, `wf.grant(token)` does as well, of a `Wattfare` or an `AsyncWattfare`.

| in | write | install |
|---|---|---|
| openai, and what takes its clients | `user.openai()`, `user.async_openai()` | `wattfare-mw[openai]` |
| pydantic-ai | `OpenAIChatModel(model, provider=WattfareProvider(user))` | `wattfare-mw[pydantic-ai]` |
| LangChain and LangGraph | `ChatWattfare(user=user, model=model)` | `wattfare-mw[langchain]` |
| openai-agents | `RunConfig(model_provider=WattfareModelProvider(user))` | `wattfare-mw[agents]` |

Each of them raises [the typed errors](errors.md), from a run of an agent too: `except WattfareBudgetExceededError`. They are errors of the library as well, so that its retries and fallbacks work. In other libraries, an error of the service is an exception of the library. [`to_wattfare_error`](errors.md#through-an-ai-library) finds the typed error in it.

A 429 is waited for as the service says, up to 30 seconds. No other call is made again, unless its connection was never made: it may have been billed. Set `max_retries` of the `Wattfare` to change how often.

The service speaks OpenAI's chat completions. To call it with a library that takes no client, give three things: the service's address and `/api/v1` as the base URL, the app's secret key as the API key, and a header `X-Wattfare-User` that names the user. `quote` encodes a user's id for the header.

This page is generated. `make test-libraries` runs the real packages against the real service, and prints the matrix. To write it into this page:

```text
make test-libraries
cd tests
python -m libraries --write
```

## The matrix
"""


def render(results: Mapping[str, Result]) -> str:
    """The page."""
    legend = [f"- {case}: {told[0].lower()}{told[1:]}." for case, told in CASES.items()]
    lines = [*table(results), "", *legend, "- —: the library has no part for it.", ""]
    return _HEAD + "\n" + "\n".join(lines) + "".join(map(_section, LIBRARIES))


def table(results: Mapping[str, Result]) -> Iterator[str]:
    """The matrix, in Markdown."""
    yield _line("library", "versions", *CASES)
    yield _line(*["---"] * (len(CASES) + 2)).replace(" ", "")
    for library in LIBRARIES:
        if result := results.get(library.name):
            versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
            cells = [result.cells.get(case, "") for case in CASES]
            yield _line(f"`{library.name}`", versions, *cells)


def parse(page: str) -> dict[str, Result]:
    """The results that stand in a page."""
    found: dict[str, Result] = {}
    for name, row in re.findall(r"^\| `([\w-]+)` \| (.*) \|$", page, re.MULTILINE):
        versions, *cells = row.split(" | ")
        found[name] = Result(
            dict(one.rsplit(" ", 1) for one in versions.split(", ")),
            dict(zip(CASES, cells, strict=False)),
        )
    return found


def _section(library: Library) -> str:
    if library.title is None:
        return ""
    language = "js" if library.example.endswith("mjs") else "python"
    code = f"```{language}\n{_code(EXAMPLES / library.example)}```"
    link = f"[examples/libraries/{library.example}](../examples/libraries/{library.example})"
    return f"\n## {library.title}\n\n{library.how} From {link}:\n\n{code}\n"


def _code(example: Path) -> str:
    """An example without the comment at its head."""
    head = r"//.*\n(//.*\n)*\n" if example.suffix == ".mjs" else r'"""(.|\n)*?"""\n\n'
    return re.sub(r"\A" + head, "", example.read_text())


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
