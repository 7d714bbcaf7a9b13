"""The list of fields in the documentation is the one that the table makes."""

from __future__ import annotations

from fields import page
from wattfare_mw.service.chat.allowed_fields import REQUEST


def test_the_list_is_the_one_that_the_table_makes() -> None:
    text = page.PAGE.read_text()
    assert page.with_list(text) == text, "run `python -m fields` in the folder tests"


def test_it_has_every_field() -> None:
    listed = page.render()
    for name, field in REQUEST.items():
        assert f"`{name}`" in listed
        assert field.note, name
