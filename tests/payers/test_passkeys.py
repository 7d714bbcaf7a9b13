"""The WebAuthn ceremonies, with an authenticator in software."""

from __future__ import annotations

import json

import msgspec
import pytest
from support.authenticator import Authenticator, decode, encode

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.payers import passkeys
from wattfare_mw.service.payers.passkeys import Challenge, Passkey

URL = "https://wattfare.example.com:8443"
RP_ID = "wattfare.example.com"


def create(authenticator: Authenticator, challenge: Challenge | None = None) -> Passkey:
    challenge = challenge or passkeys.new_challenge("create", passkeys.new_payer_id())
    options = passkeys.creation_options(challenge, URL, "a name")
    return passkeys.verify_creation(authenticator.create(options), challenge, URL)


def sign_in(authenticator: Authenticator, passkey: Passkey) -> Passkey:
    challenge = passkeys.new_challenge("sign-in")
    options = passkeys.sign_in_options(challenge, URL)
    return passkeys.verify_sign_in(authenticator.sign_in(options), challenge, passkey, URL)


def refused(function, *arguments) -> None:
    with pytest.raises(WattfareError) as refusal:
        function(*arguments)
    assert (refusal.value.code, refusal.value.status) == ("invalid_request", 403)
    assert str(refusal.value) == str(passkeys.not_verified())
    assert refusal.value.__cause__ is None


def test_passkey_is_created_and_used() -> None:
    authenticator = Authenticator(URL)
    passkey = create(authenticator)
    assert passkey.credential_id == encode(authenticator.credentials[0].id)
    assert authenticator.credentials[0].rp_id == RP_ID
    assert authenticator.credentials[0].user.hex() == passkey.payer_id
    assert [sign_in(authenticator, passkey).sign_count for _ in range(2)] == [1, 2]


def test_creation_and_sign_in_options() -> None:
    challenge = passkeys.new_challenge("create", passkeys.new_payer_id())
    options = passkeys.creation_options(challenge, URL, "a name", ["AAEC"])
    assert options["rp"] == {"id": RP_ID, "name": "Wattfare"}
    assert options["authenticatorSelection"]["userVerification"] == "required"
    assert options["authenticatorSelection"]["residentKey"] == "required"
    assert options["attestation"] == "none"
    assert options["excludeCredentials"] == [{"id": "AAEC", "type": "public-key"}]
    assert len(decode(options["challenge"])) == 32
    json.dumps(options)
    options = passkeys.sign_in_options(passkeys.new_challenge("sign-in"), URL)
    assert (options["rpId"], options["userVerification"]) == (RP_ID, "required")


@pytest.mark.parametrize(
    "authenticator",
    [
        Authenticator("https://evil.example"),
        Authenticator("https://wattfare.example.com"),
        Authenticator("http://wattfare.example.com:8443"),
        Authenticator(f"{URL}.evil.example"),
        Authenticator(URL, rp_id="evil.example"),
        Authenticator(URL, rp_id="example.com"),
        Authenticator(URL, verifies=False),
    ],
    ids=str,
)
def test_wrong_origin_wrong_host_or_missing_verification_is_refused(
    authenticator: Authenticator,
) -> None:
    refused(create, authenticator)
    good = Authenticator(URL)
    passkey = create(good)
    for wrong in ("origin", "rp_id", "verifies"):
        setattr(good, wrong, getattr(authenticator, wrong))
    refused(sign_in, good, passkey)


def test_answer_to_another_challenge_is_refused() -> None:
    authenticator = Authenticator(URL)
    payer_id = passkeys.new_payer_id()
    mine, other = (passkeys.new_challenge("create", payer_id) for _ in range(2))
    answer = authenticator.create(passkeys.creation_options(mine, URL, "a name"))
    refused(passkeys.verify_creation, answer, other, URL)
    passkey = passkeys.verify_creation(answer, mine, URL)
    mine, other = (passkeys.new_challenge("sign-in") for _ in range(2))
    answer = authenticator.sign_in(passkeys.sign_in_options(mine, URL))
    refused(passkeys.verify_sign_in, answer, other, passkey, URL)
    # A ceremony of the other kind does not count.
    refused(passkeys.verify_creation, answer, msgspec.structs.replace(mine, payer_id="00"), URL)


def test_answer_of_another_passkey_is_refused() -> None:
    authenticator = Authenticator(URL)
    first, second = create(authenticator), create(authenticator)
    challenge = passkeys.new_challenge("sign-in")
    options = passkeys.sign_in_options(challenge, URL)
    answer = authenticator.sign_in(options, authenticator.credentials[1])
    refused(passkeys.verify_sign_in, answer, challenge, first, URL)
    # With the first one's id and the second one's signature.
    forged = {**json.loads(answer), "id": first.credential_id, "rawId": first.credential_id}
    refused(passkeys.verify_sign_in, json.dumps(forged), challenge, first, URL)
    del forged["response"]["userHandle"]
    refused(passkeys.verify_sign_in, json.dumps(forged), challenge, first, URL)
    # Of a payer who does not own the passkey.
    moved = msgspec.structs.replace(second, payer_id=first.payer_id)
    refused(passkeys.verify_sign_in, answer, challenge, moved, URL)


def test_copied_passkey_is_detected_by_its_counter() -> None:
    authenticator = Authenticator(URL)
    passkey = create(authenticator)
    passkey = sign_in(authenticator, passkey)
    passkey = sign_in(authenticator, passkey)
    authenticator.credentials[0].count = 0  # the copy has been used less often
    refused(sign_in, authenticator, passkey)


def test_passkey_without_a_counter_is_accepted() -> None:
    authenticator = Authenticator(URL, counts=False)
    passkey = create(authenticator)
    for _ in range(2):
        passkey = sign_in(authenticator, passkey)
        assert passkey.sign_count == 0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "x",
        "null",
        "[]",
        "{}",
        '{"id": 1}',
        '{"id": "x"}',
        '{"id": "x", "rawId": "x"}',
        "[" * 9999,
    ],
)
def test_invalid_answer_is_refused(answer: str) -> None:
    authenticator = Authenticator(URL)
    passkey = create(authenticator)
    challenge = passkeys.new_challenge("create", passkey.payer_id)
    refused(passkeys.verify_creation, answer, challenge, URL)
    refused(passkeys.verify_sign_in, answer, passkeys.new_challenge("sign-in"), passkey, URL)


def test_answer_broken_at_any_place_is_refused() -> None:
    authenticator = Authenticator(URL)
    challenge = passkeys.new_challenge("create", passkeys.new_payer_id())
    answer = json.loads(authenticator.create(passkeys.creation_options(challenge, URL, "a name")))
    for name, value in answer["response"].items():
        data = decode(value)
        for broken in (b"", data[:-1], data[: len(data) // 2], bytes(len(data)), b"\xff" * 50):
            one = {**answer, "response": {**answer["response"], name: encode(broken)}}
            refused(passkeys.verify_creation, json.dumps(one), challenge, URL)
        one = {**answer, "response": {**answer["response"], name: 5}}
        refused(passkeys.verify_creation, json.dumps(one), challenge, URL)


def test_repr_hides_a_challenge() -> None:
    challenge = passkeys.new_challenge("sign-in")
    assert encode(challenge.challenge) not in repr(challenge)
    assert str(challenge.challenge) not in repr(challenge)
