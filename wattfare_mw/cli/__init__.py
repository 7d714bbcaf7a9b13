"""Private: the command ``wattfare``. If the extra ``wattfare-mw[service]`` is not installed, the
command says how to install it."""

from __future__ import annotations

import sys

from .process_list import keep_secrets_from_process_list

#: Packages of the extra. If one is missing, the extra is not installed.
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
