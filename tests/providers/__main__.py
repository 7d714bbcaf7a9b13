"""``python -m providers``, in the folder ``tests``, writes the page."""

from __future__ import annotations

from providers.page import PAGE, render

PAGE.write_text(render())
