"""Session tokens: only our own tokens are valid."""

from __future__ import annotations

import base64
import json
import time

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.http_client import fetch
from support.service import bearer, run_service

from wattfare_mw.errors import WattfareAuthError, WattfareError
from wattfare_mw.service.tokens import LIFETIME, Session, Signer

KEY = b"k" * 32
SIGNER = Signer(KEY)
SESSION = Session("app1", "user 1", 20 * 10**9)


def claims() -> dict:
    return jwt.decode(
        SIGNER.mint(SESSION).token, KEY, algorithms=["HS256"], audience="wattfare-connections"
    )


def forged(key: bytes = KEY, algorithm: str = "HS256", **changes: object) -> str:
    changed = {**claims(), **changes}
    changed = {name: value for name, value in changed.items() if value is not ...}
    return jwt.encode(changed, key, algorithm=algorithm)


def test_token_contains_its_session() -> None:
    created = SIGNER.mint(SESSION)
    assert SIGNER.read(created.token) == SESSION
    assert created.token not in repr(created)
    assert SIGNER.read(forged()) == SESSION  # so that the forgeries below fail for the right reason


@given(st.text(min_size=1), st.none() | st.integers(0, 10**18))
def test_any_user_and_limit_round_trip(user: str, limit: int | None) -> None:
    session = Session("app1", user, limit)
    assert SIGNER.read(SIGNER.mint(session).token) == session


@pytest.mark.parametrize(
    "changes",
    [
        {"key": b"x" * 32},
        {"algorithm": "HS512", "key": KEY * 2},
        {"algorithm": "HS384", "key": KEY * 2},
        {"iss": "someone-else"},
        {"iss": ...},
        {"aud": "another-use"},
        {"aud": ...},
        {"exp": int(time.time()) - 1},
        {"exp": ...},
        {"exp": "soon"},
        {"iat": ...},
        {"iat": int(time.time()) + 3600},
        {"sub": ...},
        {"sub": 5},
        {"app": ...},
        {"app": 5},
        {"lim": ...},
        {"lim": "20"},
        {"lim": True},
        {"lim": 1.5},
    ],
)
def test_forged_tokens_are_refused(changes: dict) -> None:
    with pytest.raises(WattfareAuthError):
        SIGNER.read(forged(**changes))


def test_algorithm_none_is_refused() -> None:
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    payload = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=").decode()
    for signature in ("", "x", SIGNER.mint(SESSION).token.rsplit(".", 1)[1]):
        with pytest.raises(WattfareAuthError):
            SIGNER.read(f"{header}.{payload}.{signature}")


@given(st.text() | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(WattfareAuthError):
        SIGNER.read(text)


def test_token_expires() -> None:
    old = SIGNER.mint(SESSION, now=time.time() - LIFETIME - 1)
    with pytest.raises(WattfareAuthError, match="expired"):
        SIGNER.read(old.token)


@pytest.mark.parametrize("key", [b"", b"short", b"k" * 31])
def test_weak_signing_key_is_refused(key: bytes) -> None:
    with pytest.raises(WattfareError, match="32"):
        Signer(key)


def test_token_of_another_app_or_service_is_refused(tmp_path) -> None:
    secret = "s" * 40
    with run_service(tmp_path, env={"WATTFARE_SERVICE_SECRET": secret}) as service:
        app = service.app()
        signer = Signer(secret.encode())
        session = Session(app.keys.app_id, "u1", None)
        good = signer.mint(session).token
        assert app.http.get("/connections", headers=bearer(good)).status_code == 200
        for bad in (
            signer.mint(
                Session("0123456789abcdef", "u1", None)
            ).token,  # an app in another database
            Signer(b"another key of thirty-two bytes!")
            .mint(Session(app.keys.app_id, "u1", None))
            .token,
            signer.mint(Session(app.keys.app_id, "u1", None), now=time.time() - 601).token,
        ):
            answer = app.http.get("/connections", headers=bearer(bad))
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "auth"
        app.close()


def test_signing_key_is_created_once_and_kept(tmp_path) -> None:
    with run_service(tmp_path) as service:
        app = service.app()
        token = app.token()
        app.close()
    with run_service(tmp_path) as service:
        url = f"{service.api}/connections"
        answer = fetch(url, headers=bearer(token))
        assert answer.status_code == 200
