"""``wattfare apps create``, and ``wattfare serve``."""

from real_service import real_service

with real_service() as wf:
    assert wf.create_session("ann", request_limit=5).token
    assert not wf.user("ann").status().connected
