"""``python -m fields``, in the folder ``tests``, writes the list of fields."""

from __future__ import annotations

from fields.page import PAGE, with_list

PAGE.write_text(with_list(PAGE.read_text()))
