from fastapi.testclient import TestClient
from fastapi_bearer import Account, app, current_account


def test_haiku_is_billed_to_the_account_of_the_token(wattfare):
    wattfare.user(7).connect(5)

    with TestClient(app, headers={"Authorization": "Bearer of-ann"}) as client:
        assert client.post("/haiku").json() == "A haiku for Ann."

    assert wattfare.billed(7) > 0


def test_dependency_override_sets_the_account(wattfare):
    app.dependency_overrides[current_account] = lambda: Account(id=8, name="Bob", plan="free")
    wattfare.user(8).connect(5)

    with TestClient(app) as client:
        assert client.post("/haiku").json() == "A haiku for Bob."

    app.dependency_overrides.clear()
    assert wattfare.billed(8) > 0
