"""Writes ``docs/providers.md`` from the rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from providers import PROVIDERS
from providers.rows import Provider

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"

# ruff: noqa: E501 - a paragraph of the page is one line

_HEAD = """\
# Providers

The service bills what the provider charges. Providers count tokens in different ways, so it reads the usage of each as that provider means it.

This page is generated from `tests/providers`. Each row of it is a test: an answer and a stream of that shape, and the exact bill. To add a quirk, add a `Row` to the provider's file, then write this page again:

```text
cd tests
python -m providers
```

How the service knows the provider, and what else it knows of it, is in [the service](models-and-prices.md#providers).

## In short

| provider | are cached tokens in `prompt_tokens`? | where is reasoning counted? | does it name the cost? | where is the usage of a stream? |
|---|---|---|---|---|
"""

_RULES = """
## The rules

- A cost that the provider names counts first. If it names none, its tokens are billed at the price in the upstream's list, or else at the published price of `genai-prices`. If it reports no tokens, the service counts what passes.
- A part of a usage that cannot be true is ignored. The other parts count.
- If a stream reports usage more than once, the last report counts.
- The client is told what it was billed, in `usage.cost`.
- Nobody is billed more than was reserved.

Where a row names no price, it is $1 for a million tokens of the prompt, $2 for a million of the answer, and $0.10 for a million cached ones.
"""


def render() -> str:
    """The page."""
    return _HEAD + "".join(map(_summary, PROVIDERS)) + _RULES + "".join(map(_section, PROVIDERS))


def _summary(provider: Provider) -> str:
    name = f"[{provider.name}](#{_anchor(provider.name)})"
    return _line(name, provider.cached, provider.reasoning, provider.cost, provider.streams)


def _section(provider: Provider) -> str:
    return "\n".join(_section_lines(provider))


def _section_lines(provider: Provider) -> Iterator[str]:
    yield f"\n## {provider.name}\n"
    yield f"Documentation: <{provider.source}>\n"
    if provider.note:
        yield f"{provider.note}\n"
    yield "| what it sends | what the service does | bill (USD) | source |"
    yield "|---|---|---|---|"
    for row in provider.rows:
        bill = _usd(row.bill)
        if row.stream_bill is not None:
            bill += f", as a stream {_usd(row.stream_bill)}"
        yield _line(row.quirk, row.rule, bill, f"[{_short(row.source)}]({row.source})").rstrip()
    yield ""


def _usd(nanos: int) -> str:
    """All digits that count, and no others."""
    whole, rest = divmod(nanos, 10**9)
    return f"{whole}.{rest:09}".rstrip("0").rstrip(".")


def _short(url: str) -> str:
    parts = url.removeprefix("https://").rstrip("/").split("/")
    if parts[0] == "github.com" and parts[3:4] in (["issues"], ["pull"]):
        return f"{parts[1]}/{parts[2]}#{parts[4]}"
    return parts[0].removeprefix("www.")


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _anchor(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum() or c in " -_").replace(" ", "-")
