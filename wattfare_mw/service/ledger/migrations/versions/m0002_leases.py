"""Add leases and idempotency keys, make the ledger append-only, and put the most frequent
statements of PostgreSQL into functions."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_FUNCTIONS = ("reserve", "settle", "renew")


def upgrade() -> None:
    op.create_table(
        "holders",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "idempotency",
        sa.Column("app_id", sa.String(length=64), nullable=False),
        sa.Column("payer", sa.String(length=300), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("reservation_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"]),
        sa.PrimaryKeyConstraint("app_id", "payer", "key_hash"),
    )
    op.create_index("idempotency_by_age", "idempotency", ["created_at"])
    op.create_index("idempotency_by_call", "idempotency", ["reservation_id"])
    op.add_column("connections", _zero("revocations"))
    # Calls in flight of an older version get no holder. The next sweep settles them.
    op.add_column(
        "reservations",
        sa.Column("holder", sa.String(length=64), nullable=False, server_default=""),
    )
    op.add_column(
        "reservations",
        sa.Column("stream", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    for name in ("revocations", "metered_nanos", "prompt_tokens", "completion_tokens"):
        op.add_column("reservations", _zero(name))
    op.create_index("reservations_by_holder", "reservations", ["holder"])
    if op.get_bind().dialect.name == "postgresql":
        _postgresql()
    else:
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER ledger_no_{event.lower()} BEFORE {event} ON ledger "
                "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
            )


def _zero(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def _postgresql() -> None:
    run = op.get_bind().exec_driver_sql
    run(
        "CREATE FUNCTION wattfare_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$"
    )
    run(
        "CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger "
        "FOR EACH STATEMENT EXECUTE FUNCTION wattfare_append_only()"
    )
    folder = Path(__file__).parents[1] / "postgresql"
    for name in _FUNCTIONS:
        run((folder / f"0002_{name}.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    # There is no downgrade: an older version would misread the rows of the ledger.
    raise NotImplementedError
