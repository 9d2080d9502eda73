"""Client keys, and the assertions that were spent."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("client") as batch_op:
        batch_op.add_column(
            sa.Column("token_endpoint_audience", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
    op.create_table(
        "client_key",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("thumbprint", sa.String(length=64), nullable=False),
        sa.Column("jwk", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["client.client_id"], name=op.f("fk_client_key_client_id_client"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("client_id", "thumbprint", name=op.f("pk_client_key")),
    )
    op.create_table(
        "spent_assertion",
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("jti_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("purpose", "client_id", "jti_digest", name=op.f("pk_spent_assertion")),
    )
    with op.batch_alter_table("spent_assertion") as batch_op:
        batch_op.create_index(batch_op.f("ix_spent_assertion_expires_at"), ["expires_at"], unique=False)


def downgrade() -> None:
    op.drop_table("spent_assertion")
    op.drop_table("client_key")
    with op.batch_alter_table("client") as batch_op:
        batch_op.drop_column("token_endpoint_audience")
