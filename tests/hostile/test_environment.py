"""Environment variables of a real desktop: stale certificates, proxies of any kind, proxy
exceptions."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest
from starlette.testclient import TestClient
from support.clients import KINDS as CLIENTS
from support.clients import Kind, driving
from support.drivers import INFERENCE, JSON, STATUS, TOKEN, asgi_app, body_of
from support.fake_wattfare import SECRET_KEY
from support.ports import refused_port
from support.service import bearer
from support.wire import STATUS as CONNECTED
from support.wire import Wire, json_answer, run_wire

from wattfare_mw import Wattfare, WattfareError, WattfareMiddleware, WattfareNetworkError
from wattfare_mw.service import create_keys
from wattfare_mw.service.asgi import create_app
from wattfare_mw.service.settings import Settings, secret_from_environment
from wattfare_mw.transport import environment

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
OWN = [kind for kind in CLIENTS if kind.whose == "own"]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in CERTIFICATES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def certificates() -> Iterator[None]:
    """Makes the clients read the certificates again."""
    environment.ssl_context.cache_clear()
    yield
    environment.ssl_context.cache_clear()


@pytest.fixture(params=OWN, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def error_of(kind: Kind, url: str) -> WattfareError:
    """The error that every call of this client raises."""
    errors: list[WattfareError] = []
    with driving(kind, url) as driver:
        for call in (driver.status, driver.generate, lambda: driver.stream().texts()):
            with pytest.raises(WattfareError) as caught:
                call()
            errors.append(caught.value)
    assert len({str(error) for error in errors}) == 1
    assert "Traceback" not in str(errors[0])
    return errors[0]


@pytest.fixture
def wire() -> Iterator[Wire]:
    with run_wire() as running:
        yield running


# -- certificates


@pytest.mark.usefixtures("certificates")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("stale", ["gone", "other kind"])
def test_error_names_stale_certificates(
    kind: Kind, variable: str, stale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "certificates"
    if stale == "other kind" and variable == "SSL_CERT_FILE":
        path.mkdir()
    elif stale == "other kind":
        path.touch()
    monkeypatch.setenv(variable, str(path))
    error = error_of(kind, "https://wattfare.test")
    assert variable in str(error)
    assert str(path) in str(error)
    assert not isinstance(error, WattfareNetworkError)  # the client must not retry it


@pytest.mark.usefixtures("certificates")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSLKEYLOGFILE"])
def test_error_names_an_invalid_certificate_file(
    kind: Kind, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "certificates"
    if variable == "SSL_CERT_FILE":
        path.write_text("no certificate")
    else:
        path.mkdir()
    monkeypatch.setenv(variable, str(path))
    assert variable in str(error_of(kind, "https://wattfare.test"))


@pytest.mark.usefixtures("certificates")
def test_corrected_variable_takes_effect_at_once(
    kind: Kind, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent/cacert.pem")
    with driving(kind, wire.url) as driver:
        with pytest.raises(WattfareError, match="SSL_CERT_FILE"):
            driver.status()
        monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
        wire.then(json_answer(CONNECTED))
        assert driver.status().connected


# -- proxies

PASSWORD = "correct-horse"
UNUSABLE = [
    "socks://127.0.0.1:7890/",
    "socks4://127.0.0.1:7890",
    "ftp://127.0.0.1:21",
    f"socks://ada:{PASSWORD}@127.0.0.1:7890",
    "http://127.0.0.1:port",
    "http://",
    "http://[::1",
]


@pytest.mark.parametrize("proxy", UNUSABLE)
@pytest.mark.parametrize("variable", ["ALL_PROXY", "https_proxy"])
def test_error_names_an_unusable_proxy(
    kind: Kind, variable: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    error = error_of(kind, "https://wattfare.test")
    assert variable in str(error)
    assert PASSWORD not in str(error)
    assert not isinstance(error, WattfareNetworkError)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_error_names_the_extra_for_a_socks_proxy(
    kind: Kind, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind.library != "aiohttp" and importlib.util.find_spec("socksio"):
        pytest.skip("The extra is installed.")
    monkeypatch.setenv("all_proxy", f"{scheme}://127.0.0.1:{refused_port()}")
    error = error_of(kind, "https://wattfare.test")
    assert "all_proxy" in str(error)
    assert "httpx[socks]" in str(error)


def test_unused_invalid_proxy_does_no_harm(
    kind: Kind, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7890/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    wire.then(json_answer(CONNECTED))
    with driving(kind, wire.url) as driver:
        assert driver.status().connected


PROXY = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("127.0.0.0/8", "127.0.0.1", True),
        ("127.0.0.0/8", "127.0.0.1:8787", True),
        ("10.0.0.0/8", "127.0.0.1", False),
        ("10.1.2.3/8", "10.9.9.9", True),
        ("10.0.0.0/8", "ten.test", False),
        ("fd00::/8", "[fd12::1]:8787", True),
        ("fd00::/8", "[fe80::1]", False),
        ("[fd00::]/8", "[fd12::1]", False),
        ("::1", "[::1]", True),
        ("[::1]", "[::1]", True),
        ("[::1]", "[::1]:8787", True),
        ("[::1]:8787", "[::1]:8787", True),
        ("[::1]:8787", "[::1]:8788", False),
        ("0:0::1", "[::1]", True),
        ("127.0.0.1:8787", "127.0.0.1:8787", True),
        ("127.0.0.1:8787", "127.0.0.1:8788", False),
        (".internal", "wattfare.internal", True),
        ("internal", "wattfare.internal", True),
        ("*.internal", "wattfare.internal", True),
        ("*.INTERNAL", "a.b.Internal:8787", True),
        ("*.internal", "notinternal", False),
        ("*", "wattfare.com", True),
        (" ::2 , 10.0.0.0/8,, *.svc.local ,nonsense/99", "a.svc.local", True),
        ("nonsense/99,[,]", "wattfare.com", False),
        ("", "wattfare.com", False),
    ],
)
def test_no_proxy_accepts_each_notation(
    no_proxy: str, host: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv("no_proxy", no_proxy)
    assert environment.Proxies().of(f"http://{host}/api") == (None if direct else PROXY)


# -- an unreachable service


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:{}", "http://127.0.0.1:{}/api/v1/"])
def test_error_names_an_unreachable_service(kind: Kind, base_url: str) -> None:
    error = error_of(kind, base_url.format(refused_port()))
    assert isinstance(error, WattfareNetworkError)
    assert not error.sent
    assert f"http://127.0.0.1:{refused_port()}." in str(error)
    assert "WATTFARE_BASE_URL" in str(error)
    assert SECRET_KEY not in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.to_wire()) == (str(error), error.to_wire())


def test_error_names_an_unknown_host(kind: Kind) -> None:
    assert "https://wattfare.invalid." in str(error_of(kind, "https://wattfare.invalid"))


# -- what a browser sees of these errors


@pytest.mark.usefixtures("certificates")
@pytest.mark.parametrize("trouble", ["certificates", "proxy", "service"])
def test_browser_sees_no_variable_and_no_host(
    trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variable, value = {
        "certificates": ("SSL_CERT_FILE", "/nonexistent/cacert.pem"),
        "proxy": ("all_proxy", "socks://proxy.internal:1"),
        "service": ("WATTFARE_BASE_URL", f"http://127.0.0.1:{refused_port()}"),
    }[trouble]
    monkeypatch.setenv(variable, value)
    app = WattfareMiddleware(asgi_app, resolve_user=lambda _: "u", secret_key=SECRET_KEY)
    with TestClient(app) as client:
        for method, path in (("POST", TOKEN), ("POST", INFERENCE), ("GET", STATUS)):
            caplog.clear()
            answer = client.request(method, path, headers=JSON, content=body_of())
            assert answer.status_code == (502 if trouble == "service" else 500)
            assert set(answer.json()) == {"error"}
            for secret in (variable, value, "127.0.0.1", "internal", "cacert"):
                assert secret not in answer.text
            lines = [each for each in caplog.records if each.name == "wattfare_mw"]
            assert any(variable in line.getMessage() for line in lines)
            assert all(line.exc_info is None for line in lines)


@pytest.mark.usefixtures("certificates")
def test_service_names_the_cause_if_its_upstream_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent/cacert.pem")
    settings = Settings(
        database=f"sqlite:///{tmp_path / 'ledger.db'}", upstream="https://upstream.invalid/v1"
    )
    keys = create_keys(settings.database, "app")
    with TestClient(create_app(settings)) as client:
        answer = client.get("/api/v1/models", headers=bearer(keys.secret_key))
    assert answer.status_code == 500
    assert "SSL_CERT_FILE" not in answer.text
    assert "SSL_CERT_FILE" in caplog.text


def test_white_space_around_variables_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTFARE_BASE_URL", " http://127.0.0.1:9\r\n")
    with Wattfare("sk_test_a_b") as wf:
        assert wf.base_url == "http://127.0.0.1:9"
    monkeypatch.setenv("WATTFARE_SERVICE_SECRET", "k" * 40 + "\n")
    assert secret_from_environment() == b"k" * 40
