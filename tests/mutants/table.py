"""The faults, and the tests that must detect them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: the rule that the fault breaks.
        file: the file that gets the fault.
        old: the original text, which occurs once in this file.
        new: the text that replaces it.
        tests: the pytest ids of the tests, of which at least one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


APPROVALS = "wattfare_mw/service/payers/approvals.py"
STORE = "wattfare_mw/service/payers/approval_store.py"
_IN_APPROVALS = "tests/payers/test_approvals.py::"
_IN_ENCRYPTION = "tests/service/test_encryption.py::"
_IN_FUNDING = "tests/service/test_funding_pages.py::"

MUTANTS = [
    Mutant(
        "the code",
        APPROVALS,
        "    if approval.code_hash is None or not "
        "hmac.compare_digest(approval.code_hash, keys.digest(code)):\n",
        "    if approval.code_hash is None:\n",
        (
            f"{_IN_APPROVALS}test_mailed_link_connects_no_user",
            f"{_IN_APPROVALS}test_wrong_attempt_connects_nothing_and_uses_nothing_up",
        ),
    ),
    Mutant(
        "the secret",
        APPROVALS,
        "        or not hmac.compare_digest(approval.secret_hash, keys.digest(secret))\n",
        "",
        (f"{_IN_APPROVALS}test_wrong_attempt_connects_nothing_and_uses_nothing_up",),
    ),
    Mutant(
        "the same user",
        APPROVALS,
        "        or approval.requested.user_id != user_id\n",
        "",
        (f"{_IN_APPROVALS}test_mailed_link_connects_no_user",),
    ),
    Mutant(
        "the origin of the return URL",
        "wattfare_mw/service/payers/return_urls.py",
        "    if not allows(origin, origins, mode):\n",
        "    if not allows(origin, origins, mode) and not origin:\n",
        (f"{_IN_APPROVALS}test_page_of_another_origin_cannot_open_an_approval",),
    ),
    Mutant(
        "the origin of the page that redeems",
        APPROVALS,
        "    return approval.requested.origin == origin\n",
        "    return True\n",
        (f"{_IN_APPROVALS}test_page_of_another_origin_cannot_redeem",),
    ),
    Mutant(
        "the state of the exchange",
        "wattfare_mw/service/payers/funding.py",
        '            or not hmac.compare_digest(request.cookie_hash, _hash(cookie or ""))\n',
        "",
        (f"{_IN_FUNDING}test_callback_in_another_browser_connects_nothing",),
    ),
    Mutant(
        "single use of an approval",
        STORE,
        '    _change(sql, approval, {"state": "redeemed"})\n',
        '    _change(sql, approval, {"state": "approved"})\n',
        (f"{_IN_APPROVALS}test_approval_is_redeemed_once",),
    ),
    Mutant(
        "CSRF",
        "wattfare_mw/service/pages/endpoints.py",
        "        forms.check_token(form, visit.cookie)\n",
        "",
        ("tests/service/test_every_page.py::test_form_without_its_token_is_refused",),
    ),
    Mutant(
        "the epoch",
        STORE,
        "        requested.epoch,\n        now,\n",
        "        None,\n        now,\n",
        (f"{_IN_APPROVALS}test_later_revocation_ends_the_approval",),
    ),
    Mutant(
        "freshness of the sign-in",
        "wattfare_mw/service/pages/approve.py",
        "        if sign_in is None or not sign_in.is_fresh():\n            return see_other",
        "        if sign_in is None:\n            return see_other",
        ("tests/payers/test_sign_in.py::test_old_sign_in_cannot_approve",),
    ),
    Mutant(
        "encryption",
        "wattfare_mw/service/payers/encryption.py",
        "self._ciphers[self.first_id].encrypt(nonce, secret, _bound_to(purpose))\n",
        "secret\n",
        (f"{_IN_ENCRYPTION}test_secret_needs_the_key_and_purpose_that_encrypted_it",),
    ),
    Mutant(
        "the upstream of a key",
        "wattfare_mw/service/payers/funding.py",
        "        if self._upstream is None or stored.upstream != self._upstream.base_url:\n",
        "        if self._upstream is None:\n",
        ("tests/service/test_funded_calls.py::test_key_is_sent_to_no_other_upstream",),
    ),
]
