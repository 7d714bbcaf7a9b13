"""Other gateways. Each is installed into its own environment on first use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import load
from .load import Load
from .processes import ROOT, BenchError, Server, environment, free_port, running

_PEERS = ROOT / "benchmarks" / "peers"
#: How long an installation may take, in seconds.
_INSTALL_SECONDS = 1200


@contextmanager
def litellm(upstream_url: str) -> Iterator[Server]:
    """LiteLLM's proxy, one worker."""
    folder = _PEERS / "litellm"
    binaries = folder / ".venv" / "bin"
    if not (binaries / "litellm").exists():
        _install([sys.executable, "-m", "venv", str(folder / ".venv")])
        pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet"]
        _install([*pip, "-r", str(folder / "requirements.txt")])
    port = free_port()
    options = ["--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    command = [str(binaries / "litellm"), *options, "--num_workers", "1", "--telemetry", "False"]
    more = {"BENCH_API": f"{upstream_url}/api/v1", "LITELLM_LOG": "ERROR"}
    # Use the list of prices in the package, instead of downloading a newer one.
    env = environment(**more, LITELLM_LOCAL_MODEL_COST_MAP="True")
    env.pop("PYTHONPATH")
    with running("LiteLLM", port, command, cwd=folder, env=env) as server:
        yield server


@contextmanager
def portkey(upstream_url: str) -> Iterator[Server]:
    """The Portkey gateway, on Node."""
    folder = _PEERS / "portkey"
    package = folder / "node_modules" / "@portkey-ai" / "gateway"
    if shutil.which("node") is None:
        raise BenchError("Node is not installed. On Debian, type: apt-get install nodejs npm")
    if not package.exists():
        _install(["npm", "install", "--no-fund", "--no-audit", "--silent"], folder)
    port = free_port()
    command = ["node", str(package / "build" / "start-server.js"), f"--port={port}", "--headless"]
    env = environment(TRUSTED_CUSTOM_HOSTS="127.0.0.1,localhost", NODE_ENV="production")
    with running("Portkey", port, command, cwd=folder, env=env) as server:
        yield server


def portkey_load(what: Load, upstream_url: str) -> Load:
    """The same load for Portkey, with headers that name the upstream."""
    headers = {
        **what.headers,
        "authorization": "Bearer sk-bench",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"{upstream_url}/api/v1",
    }
    return Load("/v1" + load.BARE, what.body, headers, None, connections=what.connections)


def litellm_load(what: Load) -> Load:
    """The same load for LiteLLM. Its answers differ from the upstream's, so they are not
    compared."""
    return Load(load.BARE, what.body, what.headers, None, connections=what.connections)


def _install(command: list[str], cwd: Path = ROOT) -> None:
    print(f"  $ {' '.join(command)}", flush=True)
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"the installation failed: {error}") from None
    if done.returncode:
        raise BenchError(f"the installation failed: {(done.stdout + done.stderr)[-1000:]}")
