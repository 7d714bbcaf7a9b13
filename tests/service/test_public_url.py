"""The URLs under which people can open the pages."""

from __future__ import annotations

import pytest
from support.cli import invoke_cli

from wattfare_mw.errors import WattfareError
from wattfare_mw.service import Settings, public_url


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://wattfare.example.com", "https://wattfare.example.com"),
        ("https://wattfare.example.com/", "https://wattfare.example.com"),
        ("HTTPS://Wattfare.Example.COM:443/", "https://wattfare.example.com"),
        ("https://example.com:8443", "https://example.com:8443"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("http://localhost", "http://localhost"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:8787", "http://localhost:8787"),
        ("http://app.localhost:8787", "http://app.localhost:8787"),
    ],
)
def test_valid_name_becomes_an_origin(given: str, origin: str) -> None:
    assert Settings(public_url=given).public_url == origin


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("http://127.0.0.1:8787", "an IP address"),
        ("https://10.0.0.1", "an IP address"),
        ("https://2130706433", "an IP address"),
        ("https://0x7f.1", "an IP address"),
        ("https://127.0x1", "an IP address"),
        ("https://127.1", "an IP address"),
        ("https://[::1]", "an IP address"),
        ("https://[::ffff:127.0.0.1]:8443", "an IP address"),
        ("https://example.com/wattfare", "a path"),
        ("https://example.com?", "a path, a query"),
        ("https://example.com/?a=1", "a path, a query"),
        ("https://example.com#", "a fragment"),
        ("https://user@example.com", "a user name"),
        ("https://user:password@example.com", "a user name"),
        ("https://@example.com", "a user name"),
        ("http://example.com", "need https://"),
        ("http://localhost.example.com", "need https://"),
        ("ftp://example.com", "https:// or http://"),
        ("example.com", "https:// or http://"),
        ("//example.com", "https:// or http://"),
        ("javascript:alert(1)", "https:// or http://"),
        ("", "https:// or http://"),
        ("https://", "its host or its port"),
        ("https://example.com:0", "its host or its port"),
        ("https://example.com:99999", "cannot be read"),
        ("https://example.com:x", "cannot be read"),
        ("https://[::1", "cannot be read"),
        ("https://exa mple.com", "visible ASCII"),
        ("https://example.com\n", "visible ASCII"),
        ("https://bücher.example", "visible ASCII"),
        ("https://example..com", "its host or its port"),
        ("https://-example.com", "its host or its port"),
        ("https://example.com;script-src *", "visible ASCII"),
        ("https://example.com;x", "its host or its port"),
        ("https://a'b.com", "its host or its port"),
    ],
)
def test_invalid_name_is_refused(given: str, fault: str) -> None:
    with pytest.raises(WattfareError) as refusal:
        Settings(public_url=given)
    assert refusal.value.code == "invalid_request"
    assert fault in refusal.value.message
    assert "password" not in refusal.value.message.replace("a user name or a password", "")


def test_command_refuses_an_invalid_name_at_start() -> None:
    answer = invoke_cli("serve", "--public-url", "http://127.0.0.1:8787")
    assert answer.exit_code != 0
    assert "IP address" in answer.output


def test_default_is_localhost() -> None:
    assert Settings().public_url is None
    assert public_url.of_port(8787) == "http://localhost:8787"
