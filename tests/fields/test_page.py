"""The list of fields in the documentation matches the table."""

from __future__ import annotations

import json
import re

from fields import page
from wattfare_mw.service.chat.allowed_fields import REQUEST
from wattfare_mw.service.chat.foreign_fields import is_foreign


def test_list_of_fields_matches_the_table() -> None:
    text = page.PAGE.read_text()
    assert page.with_list(text) == text, "run `python -m fields` in the folder tests"


def test_list_has_every_field() -> None:
    listed = page.render()
    for name, field in REQUEST.items():
        assert f"`{name}`" in listed
        assert field.note, name


def test_list_names_the_values_that_are_free() -> None:
    listed: dict[str, list[str]] = {}
    for name, field in REQUEST.items():
        found = re.search(r"; ((?:`[^`]+`(?:, | and )?)+) (?:is|are) free$", field.note)
        listed[name] = [] if found is None else re.findall("`([^`]+)`", found[1])
        for value in listed[name]:
            is_json = value[0] in '[{"0123456789'
            assert field.rule(name, json.loads(value) if is_json else value) is None, (name, value)
    assert listed["search_mode"] == ["web"]
    assert listed["search_parameters"] == ['{"mode": "off"}']
    assert listed["service_tier"][-2:] == ["on_demand", "flex"]


def test_list_names_the_allowed_field_with_a_refused_word() -> None:
    assert [name for name in REQUEST if is_foreign(name)] == ["extra_body"]
    assert "The only exception is the field `extra_body`" in page.render()
