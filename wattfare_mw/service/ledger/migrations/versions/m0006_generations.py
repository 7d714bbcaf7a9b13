"""A reservation names the generation, with which the service asks the provider for the true cost.
Settlements and recorded costs name their payer.

The replaced functions stay, because a service of an older version may still be running.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    op.add_column("reservations", sa.Column("generation_id", sa.String(128)))
    if on_postgresql:
        folder = Path(__file__).parents[1] / "postgresql"
        for name in ("renew", "settle"):
            statement = (folder / f"0006_{name}.sql").read_text(encoding="utf-8")
            op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    # An older version would not ask for the true cost.
    raise NotImplementedError
