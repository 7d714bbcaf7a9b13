"""Payers, their passkeys, recovery codes and sign-ins in SQL. Each function runs in the transaction
of its connection. ``now`` is in Unix seconds of the clock that all processes share.

No secret is stored: codes, cookies and challenge ids are hashed.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection as Sql
from sqlalchemy import delete, func, insert, select, update

from ...errors import invalid_request
from .. import keys
from ..ledger import accounts, schema
from . import recovery_codes
from .passkeys import CHALLENGE_SECONDS, Challenge, Passkey, not_verified
from .sign_ins import SIGN_IN_SECONDS, SignIn, new_token

#: The maximum number of passkeys of one payer.
MAX_PASSKEYS = 20

# -- challenges


def new_challenge_id() -> str:
    """An id for a challenge: 192 random bits."""
    return secrets.token_urlsafe(24)


def keep_challenge(sql: Sql, id_: str, challenge: Challenge, now: int) -> None:
    """Store a challenge until it is taken or expires.

    Raises:
        WattfareError: ``invalid_request``, 403; the payer is deleted.
    """
    payer_id = challenge.payer_id
    if payer_id is not None and accounts.lock_payer(sql, payer_id) == "deleted":
        raise not_verified()
    table = schema.challenges
    sql.execute(delete(table).where(table.c.expires_at <= now))
    sql.execute(
        insert(table).values(
            id_hash=keys.digest(id_),
            kind=challenge.kind,
            challenge=challenge.challenge,
            payer_id=payer_id,
            expires_at=now + CHALLENGE_SECONDS,
        )
    )


def take_challenge(sql: Sql, id_: str, now: int) -> Challenge:
    """Take the challenge with this id. It is deleted even if the answer to it is refused.

    Raises:
        WattfareError: ``invalid_request``, 403, if it does not exist or has expired.
    """
    table = schema.challenges
    row = sql.execute(
        delete(table)
        .where(table.c.id_hash == keys.digest(id_))
        .returning(table.c.kind, table.c.challenge, table.c.payer_id, table.c.expires_at)
    ).first()
    if row is None or row.expires_at <= now:
        raise not_verified()
    return Challenge(row.kind, row.challenge, row.payer_id)


# -- passkeys


def add_passkey(sql: Sql, passkey: Passkey, now: int) -> None:
    """Store a new passkey of a new or an existing payer.

    Raises:
        WattfareError: ``invalid_request``, 403; the passkey already exists, or the payer is
            deleted. 409; the payer has too many passkeys.
    """
    # One at a time, so that two concurrent requests cannot exceed the maximum.
    payer = accounts.lock_payer(sql, passkey.payer_id, alone=True)
    if payer == "deleted":
        raise not_verified()
    if payer == "unknown":
        sql.execute(insert(schema.payers).values(id=passkey.payer_id, created_at=now))
    if find_passkey(sql, passkey.credential_id) is not None:
        raise not_verified()
    if len(passkey_ids(sql, passkey.payer_id)) >= MAX_PASSKEYS:
        raise invalid_request(
            f"You have {MAX_PASSKEYS} passkeys already, which is the maximum. Use one of them.",
            409,
        )
    sql.execute(
        insert(schema.passkeys).values(
            credential_id=passkey.credential_id,
            payer_id=passkey.payer_id,
            public_key=passkey.public_key,
            sign_count=passkey.sign_count,
            created_at=now,
            last_used_at=now,
        )
    )


def find_passkey(sql: Sql, credential_id: str) -> Passkey | None:
    """The passkey with this id, unless its payer is deleted."""
    table = schema.passkeys
    row = sql.execute(
        select(table.c.payer_id, table.c.public_key, table.c.sign_count)
        .join(schema.payers, schema.payers.c.id == table.c.payer_id)
        .where(table.c.credential_id == credential_id, schema.payers.c.deleted_at.is_(None))
    ).first()
    return None if row is None else Passkey(credential_id, *row)


def passkey_ids(sql: Sql, payer_id: str) -> list[str]:
    """The ids of a payer's passkeys."""
    table = schema.passkeys
    query = select(table.c.credential_id).where(table.c.payer_id == payer_id)
    return list(sql.execute(query).scalars())


class ListedPasskey(msgspec.Struct, frozen=True):
    """A passkey, as shown to its payer. Times are in Unix seconds.

    Attributes:
        key: identifies the passkey in a form.
    """

    key: str
    created_at: int
    last_used_at: int


def passkeys_of(sql: Sql, payer_id: str) -> list[ListedPasskey]:
    """The passkeys of a payer, oldest first."""
    table = schema.passkeys
    rows = sql.execute(
        select(table.c.credential_id, table.c.created_at, table.c.last_used_at)
        .where(table.c.payer_id == payer_id)
        .order_by(table.c.created_at, table.c.credential_id)
    )
    return [ListedPasskey(_key_of(row[0]), row[1], row[2]) for row in rows]


def remove_passkey(sql: Sql, payer_id: str, key: str, sign_in: str) -> None:
    """Delete a passkey. The payer's other browsers are signed out, because one of them may be lost
    too.

    Args:
        sign_in: the cookie of the browser that stays signed in.

    Raises:
        WattfareError: ``invalid_request``, 404; the payer has no such passkey. 409; it is the only
            one. Without a passkey, a payer could sign in only until the recovery codes are used up.
    """
    table = schema.passkeys
    # One at a time, so that two concurrent requests cannot delete the last two.
    accounts.lock_payer(sql, payer_id, alone=True)
    ids = passkey_ids(sql, payer_id)
    named = [each for each in ids if _key_of(each) == key]
    if not named:
        raise invalid_request("This passkey no longer exists.", 404)
    if len(ids) == 1:
        raise invalid_request("This is your only passkey. Create another one first.", 409)
    sql.execute(delete(table).where(table.c.credential_id == named[0]))
    ends = schema.sign_ins
    sql.execute(
        delete(ends).where(ends.c.payer_id == payer_id, ends.c.token_hash != keys.digest(sign_in))
    )
    # A browser that is signed out now must not finish creating a passkey.
    begun = schema.challenges
    sql.execute(delete(begun).where(begun.c.payer_id == payer_id))


def _key_of(credential_id: str) -> str:
    return keys.digest(credential_id)[:32]


def note_use(sql: Sql, before: Passkey, after: Passkey, now: int) -> None:
    """Store a passkey's new count.

    Raises:
        WattfareError: ``invalid_request``, 403, if it was used at the same time or deleted.
    """
    table = schema.passkeys
    changed = sql.execute(
        update(table)
        .where(
            table.c.credential_id == before.credential_id, table.c.sign_count == before.sign_count
        )
        .values(sign_count=after.sign_count, last_used_at=now)
    )
    if changed.rowcount != 1:
        raise not_verified()


# -- recovery codes


def replace_codes(sql: Sql, payer_id: str, codes: Sequence[str]) -> None:
    """Replace all recovery codes of the payer.

    Raises:
        WattfareError: ``invalid_request``, 403; the payer's data was deleted.
    """
    accounts.check_payer(sql, payer_id)
    table = schema.recovery_codes
    sql.execute(delete(table).where(table.c.payer_id == payer_id))
    rows = [{"payer_id": payer_id, "code_hash": recovery_codes.hash_of(code)} for code in codes]
    sql.execute(insert(table), rows)


def use_code(sql: Sql, code: str, now: int) -> str | None:
    """Use up a recovery code and return its payer; None if the code is invalid."""
    table = schema.recovery_codes
    alive = select(schema.payers.c.id).where(schema.payers.c.deleted_at.is_(None))
    return sql.execute(
        update(table)
        .where(
            table.c.code_hash == recovery_codes.hash_of(code),
            table.c.used_at.is_(None),
            table.c.payer_id.in_(alive),
        )
        .values(used_at=now)
        .returning(table.c.payer_id)
    ).scalar()


def codes_left(sql: Sql, payer_id: str) -> int:
    """The number of a payer's unused recovery codes."""
    table = schema.recovery_codes
    return sql.execute(
        select(func.count())
        .select_from(table)
        .where(table.c.payer_id == payer_id, table.c.used_at.is_(None))
    ).scalar_one()


# -- sign-ins


def begin_sign_in(sql: Sql, payer_id: str, former: str | None, now: int) -> str:
    """Create a sign-in and return its cookie. It replaces the browser's former sign-in.

    Raises:
        WattfareError: ``invalid_request``, 403; the payer's data was deleted.
    """
    accounts.check_payer(sql, payer_id)
    table = schema.sign_ins
    sql.execute(delete(table).where(table.c.expires_at <= now))
    if former is not None:
        end_sign_in(sql, former)
    token = new_token()
    sql.execute(
        insert(table).values(
            token_hash=keys.digest(token),
            payer_id=payer_id,
            created_at=now,
            fresh_at=now,
            expires_at=now + SIGN_IN_SECONDS,
        )
    )
    return token


def find_sign_in(sql: Sql, token: str, now: int) -> SignIn | None:
    """The sign-in with this cookie."""
    table = schema.sign_ins
    row = sql.execute(
        select(table.c.payer_id, table.c.fresh_at)
        .join(schema.payers, schema.payers.c.id == table.c.payer_id)
        .where(
            table.c.token_hash == keys.digest(token),
            table.c.expires_at > now,
            schema.payers.c.deleted_at.is_(None),
        )
    ).first()
    return None if row is None else SignIn(row.payer_id, now - row.fresh_at)


def end_sign_in(sql: Sql, token: str) -> None:
    """End a sign-in."""
    table = schema.sign_ins
    sql.execute(delete(table).where(table.c.token_hash == keys.digest(token)))
