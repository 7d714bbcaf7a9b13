"""The command ``wattfare``. Its parts need the extra ``wattfare-mw[service]``, and this says so
where it is not installed."""

from __future__ import annotations

import sys

from .process_list import keep_secrets_from_process_list

#: What the extra brings; any of them missing means that it is not installed.
_NEEDED = frozenset(
    {
        "alembic",
        "click",
        "genai_prices",
        "imagesize",
        "jwt",
        "limits",
        "rich",
        "sqlalchemy",
        "starlette",
        "uvicorn",
    }
)


def main() -> None:
    """Run the command, and exit."""
    keep_secrets_from_process_list()
    try:
        from .commands import cli
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _NEEDED:
            raise
        print(
            f"wattfare: {error.name} is not installed. The service comes with an extra:\n"
            "    pip install 'wattfare-mw[service]'",
            file=sys.stderr,
        )
        sys.exit(1)
    cli(prog_name="wattfare")
