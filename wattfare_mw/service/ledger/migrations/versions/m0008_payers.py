"""Payers, their passkeys, approvals and funding. Totals belong to a payer. The operator's ceilings
have separate totals.

The replaced functions stay, in a form without payers: a service of an older version may still be
running, for connections without a payer.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_OF_A_PAYER = sa.text("payer_id <> ''")
#: The functions of older versions call the new ones.
_FUNCTIONS = (
    "reserve",
    "settle",
    "renew",
    "revoke",
    "reserve_of_0005",
    "reserve_of_0007",
    "settle_of_0002",
)


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    if not on_sqlite:
        # Lock the tables in the same order as the calls of a running service, to avoid a deadlock.
        op.execute("LOCK TABLE connections, grants IN ACCESS EXCLUSIVE MODE")
        op.execute("LOCK TABLE holders, reservations, totals, ledger IN ACCESS EXCLUSIVE MODE")
    op.add_column("apps", sa.Column("other_secret_hash", sa.String(64)))
    op.add_column("apps", sa.Column("deleted_at", sa.BigInteger))
    for table in ("connections", "grants", "reservations", "ledger"):
        op.add_column(table, _payer())
        op.add_column(table, sa.Column("funding_id", sa.String(64)))
    for table in ("reservations", "ledger"):
        op.add_column(
            table, sa.Column("operator", sa.Boolean, nullable=False, server_default=sa.false())
        )
    for table in ("connections", "grants"):
        op.create_index(f"{table}_by_payer", table, ["payer_id"])
    op.create_index(
        "ledger_by_payer",
        "ledger",
        ["payer_id", "settled_at"],
        sqlite_where=_OF_A_PAYER,
        postgresql_where=_OF_A_PAYER,
    )
    if on_sqlite:
        _rebuild_totals()
    else:
        # The default is for the functions of older versions.
        op.add_column("totals", _payer())
        op.drop_constraint("totals_pkey", "totals", type_="primary")
        op.create_primary_key("totals_pkey", "totals", ["app_id", "user_id", "payer_id", "month"])
    _create_tables()
    if not on_sqlite:
        folder = Path(__file__).parents[1] / "postgresql"
        for name in _FUNCTIONS:
            statements = (folder / f"0008_{name}.sql").read_text(encoding="utf-8")
            op.get_bind().exec_driver_sql(statements)


def _payer() -> sa.Column[str]:
    return sa.Column("payer_id", sa.String(64), nullable=False, server_default="")


def _rebuild_totals() -> None:
    op.create_table(
        "totals_anew",
        sa.Column("app_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(256), nullable=False),
        sa.Column("payer_id", sa.String(64), nullable=False),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("billed_nanos", sa.BigInteger, nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger, nullable=False),
        sa.CheckConstraint("billed_nanos >= 0", name="totals_billed"),
        sa.CheckConstraint("reserved_nanos >= 0", name="totals_reserved"),
        sa.PrimaryKeyConstraint("app_id", "user_id", "payer_id", "month"),
        sqlite_with_rowid=False,
    )
    names = "app_id, user_id, month, billed_nanos, reserved_nanos"
    op.execute(f"INSERT INTO totals_anew (payer_id, {names}) SELECT '', {names} FROM totals")  # noqa: S608
    op.drop_table("totals")
    op.rename_table("totals_anew", "totals")


def _create_tables() -> None:
    op.create_table(
        "app_origins",
        sa.Column("app_id", sa.String(64), sa.ForeignKey("apps.id"), primary_key=True),
        sa.Column("origin", sa.String(300), primary_key=True),
    )
    op.create_table(
        "payer_connections",
        sa.Column("payer_id", sa.String(64), primary_key=True),
        sa.Column("app_id", sa.String(64), sa.ForeignKey("apps.id"), primary_key=True),
        sa.Column("user_id", sa.String(256), primary_key=True),
        sa.Column("account_label", sa.String(256)),
        sa.Column("cap_nanos", sa.BigInteger),
        sa.Column("connected_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("ended", sa.String(16)),
    )
    op.create_index("payer_connections_by_user", "payer_connections", ["app_id", "user_id"])
    op.create_table(
        "operator_totals",
        sa.Column("scope", sa.String(64), primary_key=True),
        sa.Column("month", sa.String(7), primary_key=True),
        sa.Column("billed_nanos", sa.BigInteger, nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger, nullable=False),
        sa.CheckConstraint("billed_nanos >= 0", name="operator_totals_billed"),
        sa.CheckConstraint("reserved_nanos >= 0", name="operator_totals_reserved"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "payers",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("deleted_at", sa.BigInteger),
    )
    op.create_table(
        "passkeys",
        sa.Column("credential_id", sa.Text, primary_key=True),
        sa.Column("payer_id", sa.String(64), sa.ForeignKey("payers.id"), nullable=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("sign_count", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("last_used_at", sa.BigInteger, nullable=False),
    )
    op.create_index("passkeys_by_payer", "passkeys", ["payer_id"])
    op.create_table(
        "recovery_codes",
        sa.Column("payer_id", sa.String(64), sa.ForeignKey("payers.id"), primary_key=True),
        sa.Column("code_hash", sa.String(64), primary_key=True),
        sa.Column("used_at", sa.BigInteger),
    )
    op.create_index("recovery_codes_by_hash", "recovery_codes", ["code_hash"])
    op.create_table(
        "sign_ins",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("payer_id", sa.String(64), sa.ForeignKey("payers.id"), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("fresh_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("sign_ins_by_payer", "sign_ins", ["payer_id"])
    op.create_index("sign_ins_by_expiry", "sign_ins", ["expires_at"])
    op.create_table(
        "challenges",
        sa.Column("id_hash", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("challenge", sa.LargeBinary, nullable=False),
        sa.Column("payer_id", sa.String(64)),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("challenges_by_expiry", "challenges", ["expires_at"])
    op.create_table(
        "approvals",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("app_id", sa.String(64), sa.ForeignKey("apps.id"), nullable=False),
        sa.Column("user_id", sa.String(256)),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("origin", sa.String(300), nullable=False),
        sa.Column("return_url", sa.Text, nullable=False),
        sa.Column("account_label", sa.String(256)),
        sa.Column("asked_nanos", sa.BigInteger),
        sa.Column("asked_unlimited", sa.Boolean, nullable=False),
        sa.Column("requests", sa.Integer),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("code_hash", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("payer_id", sa.String(64)),
        sa.Column("cap_nanos", sa.BigInteger),
        sa.Column("unlimited", sa.Boolean, nullable=False),
        sa.Column("funding_id", sa.String(64)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("decided_at", sa.BigInteger),
        sa.Column("left_at", sa.BigInteger),
        sa.Column("replaces", sa.String(64)),
    )
    op.create_index("approvals_by_expiry", "approvals", ["expires_at"])
    op.create_table(
        "funding",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("payer_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("upstream", sa.Text, nullable=False),
        sa.Column("label", sa.String(256), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary),
        sa.Column("encryption_key_id", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("limit_nanos", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("checked_at", sa.BigInteger, nullable=False),
    )
    op.create_index("funding_by_payer", "funding", ["payer_id"])
    op.create_table(
        "funding_requests",
        sa.Column("state_hash", sa.String(64), primary_key=True),
        sa.Column("payer_id", sa.String(64), nullable=False),
        sa.Column("cookie_hash", sa.String(64), nullable=False),
        sa.Column("verifier", sa.LargeBinary, nullable=False),
        sa.Column("limit_nanos", sa.BigInteger),
        sa.Column("return_to", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("funding_requests_by_expiry", "funding_requests", ["expires_at"])


def downgrade() -> None:
    # An older version would not know the payer of these totals.
    raise NotImplementedError
