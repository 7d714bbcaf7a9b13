"""Writes ``docs/libraries.md``: the results of the last run, and how to use each library."""

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

To bill a user for the calls of an AI library, write one line and install one extra:

| library | one line | extra |
|---|---|---|
| openai, and libraries that accept its client | `user.openai()`, `user.async_openai()` | `openai` |
| pydantic-ai | `OpenAIChatModel(model, provider=WattfareProvider(user))` | `pydantic-ai` |
| LangChain, LangGraph | `ChatWattfare(user=user, model=model)` | `langchain` |
| openai-agents | `RunConfig(model_provider=WattfareModelProvider(user))` | `agents` |

`user` is a user or a grant of a `Wattfare` or an `AsyncWattfare`. All users of one client share its HTTP connections.

These integrations raise [the errors of Wattfare](errors.md#through-an-ai-library), such as `WattfareBudgetExceededError`, even in the middle of an agent's run. Other libraries raise their own exceptions. `to_wattfare_error` finds the Wattfare error in such an exception.

After a 429, these integrations retry the call if `Retry-After` (or `retry-after-ms`) is at most 30 seconds. They do not retry after other refusals, or if the call may have been billed. `max_retries` of the `Wattfare` limits the retries.

If a library does not accept a client, set:

- the base URL to the service's address with `/api/v1`
- the API key to the app's secret key
- the header `X-Wattfare-User` to the user's id, encoded with `urllib.parse.quote`

This page is generated from tests of the real packages against the real service. To run the tests and update the page:

```text
make test-libraries
cd tests
python -m libraries --write
```

## Tested libraries

A row whose name ends in `-of-user` tests the code in the column *one line* of the first table. The row without `-of-user` tests the same library with its own client. `openai-2` is version 2 of openai.
"""


def render(results: Mapping[str, Result]) -> str:
    """Returns the page."""
    legend = [f"- {case}: {meaning[0].lower()}{meaning[1:]}." for case, meaning in CASES.items()]
    lines = [*table(results), "", *legend, "- —: the library does not support it.", ""]
    return _HEAD + "\n" + "\n".join(lines) + "".join(map(_section, LIBRARIES))


def table(results: Mapping[str, Result]) -> Iterator[str]:
    """Returns the matrix in Markdown."""
    yield _line("library", "versions", *CASES)
    yield _line(*["---"] * (len(CASES) + 2)).replace(" ", "")
    for library in LIBRARIES:
        if result := results.get(library.name):
            versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
            cells = [result.cells.get(case, "") for case in CASES]
            yield _line(f"`{library.name}`", versions, *cells)


def parse(page: str) -> dict[str, Result]:
    """Returns the results in a page."""
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
    return f"\n## {library.title}\n\n{library.how}\n\nThis is {link}:\n\n{code}\n"


def _code(example: Path) -> str:
    """Returns an example without its first comment."""
    head = r"//.*\n(//.*\n)*\n" if example.suffix == ".mjs" else r'"""(.|\n)*?"""\n\n'
    return re.sub(r"\A" + head, "", example.read_text())


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
