"""The length of JSON text, counted without writing the text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattfare_mw.service.chat import json_length as module
from wattfare_mw.service.chat.json_length import json_length

texts = st.text(
    st.characters() | st.sampled_from('"\\\n\r\t\b\f\0\x1f\x7fé\u2028😀\ud800'), max_size=20
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values, st.sampled_from([None, 0, 2, 4]))
def test_json_length_equals_the_length_of_the_text(value: Any, indent: int | None) -> None:
    assert json_length(value, indent) == len(json.dumps(value, indent=indent))


@given(texts, st.integers(1, 5))
def test_long_text_is_counted_in_pieces(text: str, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        assert json_length(text) == len(json.dumps(text))
