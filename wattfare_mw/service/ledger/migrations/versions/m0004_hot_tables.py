"""Makes the writes of each call faster. In SQLite, the tables that each call writes are stored in
the order of their primary key (WITHOUT ROWID). They have no foreign key to the app, because the
connection, the grant or the ledger's row has one. The ledger's index by user is dropped, because no
query needs it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    if not on_sqlite:
        # Lock the tables in the same order as the calls of a running service, to avoid a deadlock.
        op.execute("LOCK TABLE connections IN EXCLUSIVE MODE")
        op.execute("LOCK TABLE holders, reservations, totals, ledger IN ACCESS EXCLUSIVE MODE")
        for table in ("totals", "reservations"):
            op.drop_constraint(f"{table}_app_id_fkey", table, type_="foreignkey")
    op.drop_index("ledger_by_user", table_name="ledger")
    if on_sqlite:
        _rebuild()


def _rebuild() -> None:
    _rebuild_table(
        "connections",
        sa.Column("app_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(256), nullable=False),
        sa.Column("cap_nanos", sa.BigInteger),
        sa.Column("connected", sa.Boolean, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.Column("revocations", sa.BigInteger, nullable=False, server_default="0"),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"]),
        sa.PrimaryKeyConstraint("app_id", "user_id"),
    )
    _rebuild_table(
        "totals",
        sa.Column("app_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(256), nullable=False),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("billed_nanos", sa.BigInteger, nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger, nullable=False),
        sa.CheckConstraint("billed_nanos >= 0", name="totals_billed"),
        sa.CheckConstraint("reserved_nanos >= 0", name="totals_reserved"),
        sa.PrimaryKeyConstraint("app_id", "user_id", "month"),
    )
    _rebuild_table(
        "holders",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    _rebuild_table(
        "reservations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("app_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(256)),
        sa.Column("grant_hash", sa.String(64)),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger, nullable=False),
        sa.Column("reserved_at", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False, server_default=""),
        sa.Column("stream", sa.Boolean, nullable=False, server_default=sa.false()),
        *(
            sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
            for name in ("revocations", "metered_nanos", "prompt_tokens", "completion_tokens")
        ),
        sa.CheckConstraint("(user_id IS NULL) <> (grant_hash IS NULL)", name="reservations_payer"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("reservations_by_holder", "reservations", ["holder"])


def _rebuild_table(name: str, *parts: sa.schema.SchemaItem) -> None:
    """Rebuild a table with the same rows and columns, in the order of its primary key."""
    new = op.create_table(f"{name}_anew", *parts, sqlite_with_rowid=False)
    names = new.columns.keys()
    old = sa.select(*map(sa.column, names)).select_from(sa.table(name))
    op.execute(new.insert().from_select(names, old))
    op.drop_table(name)
    op.rename_table(new.name, name)


def downgrade() -> None:
    # A ledger is not downgraded: an older version would not understand its rows.
    raise NotImplementedError
