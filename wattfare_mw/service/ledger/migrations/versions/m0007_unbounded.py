"""A reservation says whether the call's cost has a bound.

The replaced function stays, because a service of an older version may still be running.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("unbounded", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("reservations", column)
    if op.get_bind().dialect.name == "postgresql":
        folder = Path(__file__).parents[1] / "postgresql"
        statement = (folder / "0007_reserve.sql").read_text(encoding="utf-8")
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    # If the process died, an older version would bill the whole reservation of such a call.
    raise NotImplementedError
