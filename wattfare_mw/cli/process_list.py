"""Hides passwords from the process list. The arguments are visible until this module has run, so it
imports only fast modules."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

#: Options whose value is a secret or may contain one.
SECRETS = ("--app-cookie", "--database", "--rate-limit-storage", "--upstream-key")
#: Options whose whole value is a secret.
_ALWAYS = ("--app-cookie", "--upstream-key")
_PASSWORD = re.compile(r"://[^@]*:.*@|[?&](?:ssl)?password=")


def variable_of(name: str) -> str:
    """The environment variable of this option."""
    return "WATTFARE_" + name.removeprefix("--").replace("-", "_").upper()


def keep_secrets_from_process_list() -> None:
    """If the arguments contain a secret, run the command again in the same process, with the secret
    in an environment variable. Other users of the machine cannot read the environment."""
    arguments = sys.argv[1:]
    kept, secrets = split(arguments)
    if not secrets or os.name != "posix" or not sys.executable:
        return
    os.environ.update(secrets)
    ours = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
    os.execv(sys.executable, [sys.executable, *ours, *kept])  # noqa: S606


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without secrets, and environment variables with the secrets."""
    kept: list[str] = []
    variables: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            kept += [argument, *rest]
            break
        name, equals, value = argument.partition("=")
        if name not in SECRETS:
            kept.append(argument)
            continue
        given = [argument]
        if not equals:
            value = next(rest, None)
            if value is None:
                kept.append(argument)
                break
            given.append(value)
        if name in _ALWAYS or _PASSWORD.search(value):
            variables[variable_of(name)] = value
        else:
            kept += given
            variables.pop(variable_of(name), None)  # the last value counts
    given = {argument.partition("=")[0] for argument in kept}
    if given.isdisjoint({"--upstream", "--config"}) and "WATTFARE_CONFIG" not in os.environ:
        # A key without an upstream is a mistake, which the command reports.
        key = variables.pop("WATTFARE_UPSTREAM_KEY", None)
        if key is not None and "WATTFARE_UPSTREAM" not in os.environ:
            kept += ["--upstream-key", key]
        elif key is not None:
            variables["WATTFARE_UPSTREAM_KEY"] = key
    return kept, variables
