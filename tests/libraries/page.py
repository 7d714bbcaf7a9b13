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

A user or a grant pays for the calls of an AI library. Write one line, and install one extra:

| library | one line | extra |
|---|---|---|
| openai, and libraries that take its client | `user.openai()`, `user.async_openai()` | `openai` |
| pydantic-ai | `OpenAIChatModel(model, provider=WattfareProvider(user))` | `pydantic-ai` |
| LangChain, LangGraph | `ChatWattfare(user=user, model=model)` | `langchain` |
| openai-agents | `RunConfig(model_provider=WattfareModelProvider(user))` | `agents` |

`user` is a user or a grant of a `Wattfare` or an `AsyncWattfare`. All its users share the connections.

They raise [the typed errors](errors.md#through-an-ai-library), also from the run of an agent: catch `WattfareBudgetExceededError`. Other libraries raise their own exceptions, and `to_wattfare_error` finds the typed error inside.

A call that got a 429 is repeated after `Retry-After`, if that is at most 30 s. No other refusal is repeated, and no call that may have been billed. Set `max_retries` of the `Wattfare` to change how often.

Some libraries take no client. Give them the service's address with `/api/v1` as the base URL, the app's secret key as the API key, and a header `X-Wattfare-User` with the user's id. `quote` encodes an id for the header.

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
