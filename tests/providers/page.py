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

The service bills what the provider charges. Providers count tokens in different ways, so the service has rules for each provider. [Models and prices](models-and-prices.md#providers) explains how the service recognizes a provider.

This page is generated from `tests/providers`. Each row is a test with an answer, a stream and the exact bill. To add a row, add a `Row` to the provider's file, then generate the page again:

```text
cd tests
python -m providers
```

## Overview

| provider | cached tokens in `prompt_tokens` | reasoning tokens | reports the cost | usage of a stream |
|---|---|---|---|---|
"""

_RULES = """
## The rules

- If the provider reports a cost, the service bills this cost. Otherwise, it bills the reported tokens, at [the model's price](models-and-prices.md#an-upstream). If the provider reports no tokens, the service bills the tokens that it counted.
- The service ignores impossible parts of a usage, and uses the other parts.
- If a stream reports its usage several times, the last report counts. If each report counts only its own chunk, the service adds the reports.
- `usage.cost` in the answer is what the user is billed.
- A bill never exceeds the reservation.

*Cached* tokens are read from the provider's cache. *Written* tokens are written to this cache.

Prices in parentheses are in USD per million tokens, per request or per search. If a row has no price, its test uses these prices for a million tokens: $1 in the prompt, $2 in the answer, and $0.10 for cached tokens.
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
    yield "| the provider sends | the service | bill (USD) | source |"
    yield "|---|---|---|---|"
    for row in provider.rows:
        bill = _usd(row.bill)
        if row.stream_bill is not None:
            bill += f"; stream: {_usd(row.stream_bill)}"
        yield _line(row.quirk, row.rule, bill, f"[{_short(row.source)}]({row.source})").rstrip()
    yield ""


def _usd(nanos: int) -> str:
    """An amount without superfluous digits."""
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
