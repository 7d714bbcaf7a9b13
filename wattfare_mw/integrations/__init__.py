"""AI libraries whose calls a user or a grant pays for. Each module needs the library of its name.

A module is imported when an app imports it. ``import wattfare_mw`` imports none of them.
"""

from __future__ import annotations


def not_installed(error: ImportError, library: str, extra: str) -> ImportError:
    """What to raise in place of ``error``, which an import of ``library`` has raised.

    Args:
        library: the name that is imported.
        extra: the extra of ``wattfare-mw`` that installs it.
    """
    if (error.name or "").partition(".")[0] != library.partition(".")[0]:
        return error  # it is installed, and something that it needs is not
    return ImportError(
        f"{library} is not installed. Type: pip install 'wattfare-mw[{extra}]'", name=library
    )
