"""The command group of ``wattfare``. It converts errors to messages."""

from __future__ import annotations

from typing import Any

import click

from ..errors import WattfareError
from .apps import apps
from .demo import demo
from .dev import dev
from .doctor import doctor
from .ledger import ledger
from .migrate import migrate
from .serve import serve
from .usage import usage


class _Group(click.Group):
    """A group that prints an error on one line, without a traceback, and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WattfareError as error:
            raise click.ClickException(error.message) from None
        except OSError as error:
            says = error.strerror or str(error)
            file = error.filename2 or error.filename
            raise click.ClickException(f"{file}: {says}." if file else says) from None


@click.group(cls=_Group)
@click.version_option(package_name="wattfare-mw")
def cli() -> None:
    """Wattfare for Python: run a service and manage its apps."""


cli.add_command(dev)
cli.add_command(doctor)
cli.add_command(serve)
cli.add_command(apps)
cli.add_command(usage)
cli.add_command(ledger)
cli.add_command(migrate)
cli.add_command(demo)
