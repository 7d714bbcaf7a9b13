"""The service finds its Redis driver. No Redis listens here, and the service says so."""

from real_service import real_service

from wattfare_mw import WattfareError

output = ""
with real_service("--rate-limit-storage", "redis://127.0.0.1:1") as wf:
    try:
        wf.user("ann").status()
    except WattfareError as error:
        output = error.message
assert "storage of rate limits" in output, output
