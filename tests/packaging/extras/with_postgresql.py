"""The service finds its PostgreSQL driver. No database listens here, and the service says so."""

import subprocess

from real_service import COMMAND

address = "postgresql://ann@127.0.0.1:1/ledger"
command = [COMMAND, "serve", "--port", "0", "--database", address]
run = subprocess.run(command, capture_output=True, text=True, check=False)
output = run.stdout + run.stderr
assert run.returncode != 0
assert "not installed" not in output, output
assert "Traceback" not in output, output
