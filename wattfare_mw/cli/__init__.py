"""Private: the command ``wattfare``. Without the extra ``wattfare-mw[service]``, it prints how to
install the extra."""

from __future__ import annotations

import sys

from .process_list import keep_secrets_from_process_list

#: Packages of the extra. If one of them is missing, the extra is not installed.
_NEEDED = frozenset(
    {
        "aiohttp",
        "alembic",
        "click",
        "cryptography",
        "genai_prices",
        "httptools",
        "imagesize",
        "jinja2",
        "jwt",
        "limits",
        "prometheus_client",
        "pypdfium2",
        "rich",
        "sqlalchemy",
        "starlette",
        "uvicorn",
        "webauthn",
    }
)


def main() -> None:
    """Run the command and exit."""
    keep_secrets_from_process_list()
    try:
        from .commands import cli
    except KeyboardInterrupt:  # Ctrl-C while the modules load
        print("Aborted!", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _NEEDED:
            raise
        print(
            f"wattfare: {error.name} is not installed. This command needs an extra. Type:\n"
            "    pip install 'wattfare-mw[service]'",
            file=sys.stderr,
        )
        sys.exit(1)
    cli(prog_name="wattfare")
