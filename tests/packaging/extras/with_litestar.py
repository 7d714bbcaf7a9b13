"""A Litestar app with the plugin."""

from fake_service import fake_service
from litestar import Litestar, get
from litestar.di import NamedDependency
from litestar.testing import TestClient
from wattfare_litestar import WattfarePlugin

from wattfare_mw import AsyncUser


@get("/hello")
async def hello(wattfare_user: NamedDependency[AsyncUser]) -> str:
    return (await wattfare_user.model("wattfare/echo").generate("Say hello.")).text


async def who(connection):
    return connection.query_params.get("user")


with fake_service():
    app = Litestar([hello], plugins=[WattfarePlugin(resolve_user=who)])
    with TestClient(app) as client:
        assert client.get("/hello?user=ann").text == "Hello."
        assert client.get("/hello").status_code == 401
        assert client.get("/api/wattfare/status").status_code == 401
