"""Integrations of AI libraries. A user or a grant pays for the calls of a library. Each module
needs the library of the same name.

``import wattfare_mw`` does not import these modules.
"""

from __future__ import annotations


def not_installed(error: ImportError, extra: str, *packages: str) -> ImportError:
    """The error to raise for ``error``, which an import of these packages has raised.

    Args:
        extra: the extra of ``wattfare-mw`` that installs the packages.
    """
    missing = (error.name or "").partition(".")[0]
    if missing not in packages:
        return error  # a dependency of the packages is missing
    return ImportError(
        f"{missing} is not installed. Type: pip install 'wattfare-mw[{extra}]'", name=missing
    )
