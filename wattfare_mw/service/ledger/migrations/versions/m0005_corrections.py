"""A row of the ledger can correct another. A lease names the boot of the machine, because its time
counts from that boot."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ONCE = sa.text("corrects IS NULL")


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    if not on_sqlite:
        # Lock the tables in the same order as the statements of a running service, to avoid a
        # deadlock.
        op.execute("LOCK TABLE connections IN EXCLUSIVE MODE")
        op.execute("LOCK TABLE holders, ledger IN ACCESS EXCLUSIVE MODE")
    op.add_column("holders", sa.Column("boot", sa.String(64), nullable=False, server_default=""))
    if on_sqlite:
        _rebuild_ledger()
    else:
        _alter_ledger()
    op.create_index(
        "ledger_once",
        "ledger",
        ["reservation_id"],
        unique=True,
        sqlite_where=_ONCE,
        postgresql_where=_ONCE,
    )


def _alter_ledger() -> None:
    op.add_column("ledger", sa.Column("corrects", sa.BigInteger))
    op.create_foreign_key("ledger_corrects_fkey", "ledger", "ledger", ["corrects"], ["id"])
    op.create_unique_constraint("ledger_corrects_key", "ledger", ["corrects"])
    op.drop_constraint("ledger_reservation_id_key", "ledger", type_="unique")
    op.drop_constraint("ledger_billed", "ledger", type_="check")
    op.create_check_constraint(
        "ledger_billed", "ledger", "billed_nanos >= 0 OR corrects IS NOT NULL"
    )
    folder = Path(__file__).parents[1] / "postgresql"
    op.get_bind().exec_driver_sql((folder / "0005_reserve.sql").read_text(encoding="utf-8"))


def _rebuild_ledger() -> None:
    new = op.create_table(
        "ledger_anew",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("reservation_id", sa.String(64), nullable=False),
        sa.Column("reserved_at", sa.BigInteger, nullable=False),
        sa.Column("settled_at", sa.BigInteger, nullable=False),
        sa.Column("app_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(256)),
        sa.Column("grant_hash", sa.String(64)),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger, nullable=False),
        sa.Column("billed_nanos", sa.BigInteger, nullable=False),
        sa.Column("claimed_nanos", sa.BigInteger),
        sa.Column("ended", sa.String(32), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("corrects", sa.Integer),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"]),
        sa.ForeignKeyConstraint(["corrects"], ["ledger_anew.id"]),
        sa.UniqueConstraint("corrects"),
        sa.CheckConstraint("billed_nanos >= 0 OR corrects IS NOT NULL", name="ledger_billed"),
        sa.CheckConstraint("billed_nanos <= reserved_nanos", name="ledger_within_reservation"),
    )
    names = [name for name in new.columns.keys() if name != "corrects"]  # noqa: SIM118
    old = sa.select(*map(sa.column, names)).select_from(sa.table("ledger"))
    op.execute(new.insert().from_select(names, old))
    op.drop_table("ledger")  # with its triggers
    op.rename_table("ledger_anew", "ledger")
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER ledger_no_{event.lower()} BEFORE {event} ON ledger "
            "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        )


def downgrade() -> None:
    # An older version would not understand the new rows.
    raise NotImplementedError
