"""The list of fields in the documentation matches the table."""

from __future__ import annotations

from fields import page
from wattfare_mw.service.chat.allowed_fields import REQUEST


def test_list_of_fields_matches_the_table() -> None:
    text = page.PAGE.read_text()
    assert page.with_list(text) == text, "run `python -m fields` in the folder tests"


def test_list_has_every_field() -> None:
    listed = page.render()
    for name, field in REQUEST.items():
        assert f"`{name}`" in listed
        assert field.note, name
