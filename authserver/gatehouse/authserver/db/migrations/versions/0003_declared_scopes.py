"""Whether a resource still declares a scope that clients may hold."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("resource_scope") as batch_op:
        batch_op.add_column(sa.Column("declared", sa.Boolean(), server_default=sa.true(), nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("resource_scope") as batch_op:
        batch_op.drop_column("declared")
