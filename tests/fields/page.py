"""Writes the list of fields in ``docs/requests.md`` from the table."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from wattfare_mw.service.chat.allowed_fields import PROVIDER_TOOLS, REQUEST, Kind
from wattfare_mw.service.chat.foreign_fields import NAMES, PREFIXES, WORDS

PAGE = Path(__file__).parents[2] / "docs" / "requests.md"
BEGIN = "<!-- The list of fields: written by `python -m fields` in the folder tests. -->\n"
END = "<!-- The end of the list of fields. -->\n"


def with_list(text: str) -> str:
    """The page with the current list of fields."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + render() + END + rest.split(END)[1]


def render() -> str:
    """The list."""
    rows = [(field.kind, field.note, name) for name, field in REQUEST.items()]
    rows.sort(key=lambda row: [*Kind].index(row[0]))  # within a kind, in the order of the table
    lines = ["\n| field | kind | what it is |\n|---|---|---|\n"]
    for (kind, note), same in groupby(rows, key=lambda row: row[:2]):
        names = ", ".join(f"`{name}`" for _, _, name in same)
        lines.append(f"| {names} | {kind} | {note} |\n")
    lines.append("\nTools of these types are held: " + _names(PROVIDER_TOOLS, "…") + ".\n")
    lines.append(
        "\nSome names are refused at any depth of a request, except in values that only the model "
        "reads, such as a schema. They could send the call to another server, or use the "
        "operator's keys and data:\n\n"
        "- Names that contain one of these words, with any case and separators (`api_key`, "
        f"`apiKey`, `API-Key`): {_names(WORDS)}. The only exception is the field `extra_body` of "
        "the table above.\n"
        f"- Names that begin with one of these prefixes: {_names(PREFIXES, '…')}.\n"
        f"- These names, with any case and separators: {_names(NAMES)}.\n\n"
        "In `metadata` and `trace`, the client chooses the keys. The first two items also apply "
        "there, because LiteLLM reads the keys of `metadata`. The third item does not.\n\n"
    )
    return "".join(lines)


def _names(names: tuple[str, ...], more: str = "") -> str:
    return ", ".join(f"`{name}{more}`" for name in names)
