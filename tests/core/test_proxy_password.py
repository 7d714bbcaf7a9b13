"""The password of a proxy comes from an environment variable and is never shown."""

from __future__ import annotations

import asyncio
import traceback

import pytest
from support.clients import SECRET
from support.wire import Wire, answer, close

from wattfare_mw import AsyncWattfare, WattfareNetworkError

PASSWORD = "pr0xy-passw0rd"


@pytest.mark.parametrize("listening", [True, False])
def test_proxy_error_hides_its_password(
    listening: bool, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call() -> WattfareNetworkError:
        async with AsyncWattfare(SECRET, base_url=f"https://w{listening}.invalid") as wf:
            with pytest.raises(WattfareNetworkError) as raised:
                await wf.user("u1").model("m").generate("hello")
        return raised.value

    port = wire.port if listening else 1
    monkeypatch.setenv("https_proxy", f"http://ada:{PASSWORD}@127.0.0.1:{port}")
    monkeypatch.setattr("wattfare_mw.calls.retry_delay", lambda *_, **__: None)
    if listening:
        wire.then(answer(407), close)
    error = asyncio.run(call())
    assert not error.sent
    # What the log and a traceback reporter show of an error.
    shown = repr(error.__cause__) + "".join(traceback.format_exception(error))
    assert ("ClientHttpProxyError" if listening else "ClientProxyConnectionError") in shown
    for secret in (PASSWORD, "Proxy-Authorization", SECRET):
        assert secret not in shown
