"""The lives of credentials: until when each is accepted, and when it was last used."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = ("client_secret", "client_key", "resource_credential")


def upgrade() -> None:
    for table in _TABLES:
        with op.batch_alter_table(table) as batch_op:
            if table != "resource_credential":
                batch_op.add_column(sa.Column("expires_at", sa.BigInteger(), nullable=True))
            batch_op.add_column(sa.Column("revoked", sa.Boolean(), server_default=sa.false(), nullable=False))
            batch_op.add_column(sa.Column("last_used_at", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    # The schema before knows no end: what is not accepted any more must not come back.
    op.execute("DELETE FROM client_secret WHERE revoked OR expires_at IS NOT NULL")
    op.execute("DELETE FROM client_key WHERE revoked OR expires_at IS NOT NULL")
    op.execute("DELETE FROM resource_credential WHERE revoked")
    for table in _TABLES:
        with op.batch_alter_table(table) as batch_op:
            batch_op.drop_column("last_used_at")
            batch_op.drop_column("revoked")
            if table != "resource_credential":
                batch_op.drop_column("expires_at")
