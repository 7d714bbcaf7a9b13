"""Integrations of AI libraries: a user or a grant pays for their calls. Each module needs the
library of its name.

A module is imported when an app imports it. ``import wattfare_mw`` imports none of them.
"""

from __future__ import annotations


def not_installed(error: ImportError, extra: str, *packages: str) -> ImportError:
    """The error to raise instead of ``error``, which an import of these packages raised.

    Args:
        extra: the extra of ``wattfare-mw`` that installs them.
    """
    missing = (error.name or "").partition(".")[0]
    if missing not in packages:
        return error  # they are installed, but one of their dependencies is not
    return ImportError(
        f"{missing} is not installed. Type: pip install 'wattfare-mw[{extra}]'", name=missing
    )
