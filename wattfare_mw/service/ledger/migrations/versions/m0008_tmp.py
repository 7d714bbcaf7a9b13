import sqlalchemy as sa
from alembic import op

revision="0008"
down_revision="0007"
branch_labels=None
depends_on=None
def upgrade():
    from wattfare_mw.service.ledger import schema
    for t in schema.STOPGAP: t.create(op.get_bind())
    for n,c in schema.COLS:
        op.add_column(n, sa.Column(c.name,c.type,nullable=c.nullable,server_default=c.server_default))
