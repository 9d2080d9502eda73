"""Status lists, and the credentials of resources."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("client") as batch_op:
        batch_op.add_column(sa.Column("token_epoch", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "resource_credential",
        sa.Column("credential_id", sa.String(length=32), nullable=False),
        sa.Column("resource", sa.String(length=512), nullable=False),
        sa.Column("pepper_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["resource"],
            ["resource.resource"],
            name=op.f("fk_resource_credential_resource_resource"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["pepper_id"], ["pepper.pepper_id"], name=op.f("fk_resource_credential_pepper_id_pepper")
        ),
        sa.PrimaryKeyConstraint("credential_id", name=op.f("pk_resource_credential")),
    )
    with op.batch_alter_table("resource_credential") as batch_op:
        batch_op.create_index(batch_op.f("ix_resource_credential_resource"), ["resource"], unique=False)

    op.create_table(
        "status_list",
        sa.Column("list_id", sa.String(length=12), nullable=False),
        sa.Column("next_index", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("list_id", name=op.f("pk_status_list")),
    )
    op.create_table(
        "status_block",
        sa.Column("list_id", sa.String(length=12), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("revoked", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["list_id"], ["status_list.list_id"], name=op.f("fk_status_block_list_id_status_list"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("list_id", "start", name=op.f("pk_status_block")),
    )
    with op.batch_alter_table("status_block") as batch_op:
        batch_op.create_index(batch_op.f("ix_status_block_client_id"), ["client_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_status_block_expires_at"), ["expires_at"], unique=False)

    op.create_table(
        "revoked_token",
        sa.Column("list_id", sa.String(length=12), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["list_id"], ["status_list.list_id"], name=op.f("fk_revoked_token_list_id_status_list"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("list_id", "idx", name=op.f("pk_revoked_token")),
    )
    with op.batch_alter_table("revoked_token") as batch_op:
        batch_op.create_index(batch_op.f("ix_revoked_token_expires_at"), ["expires_at"], unique=False)


def downgrade() -> None:
    op.drop_table("revoked_token")
    op.drop_table("status_block")
    op.drop_table("status_list")
    op.drop_table("resource_credential")
    with op.batch_alter_table("client") as batch_op:
        batch_op.drop_column("token_epoch")
