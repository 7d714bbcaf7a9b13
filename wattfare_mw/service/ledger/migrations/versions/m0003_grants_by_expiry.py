"""Index grants by expiry, so that the sum of an app's open grants does not read expired ones."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("grants_by_expiry", "grants", ["app_id", "expires_at", "cap_nanos"])


def downgrade() -> None:
    op.drop_index("grants_by_expiry", "grants")
