"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False, comment="milliseconds since the epoch"),
        sa.Column("writer", sa.String(length=32), nullable=False, comment="the process that wrote the row"),
        sa.Column("sequence", sa.BigInteger(), nullable=False, comment="counts the rows of one writer"),
        sa.Column(
            "previous",
            sa.String(length=64),
            nullable=True,
            comment="reserved: authentication code of the writer's previous row",
        ),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("actor", sa.String(length=255), nullable=True),
        sa.Column("jti", sa.String(length=64), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("object", sa.String(length=512), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_event")),
    )
    with op.batch_alter_table("audit_event") as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_event_actor"), ["actor"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_event_jti"), ["jti"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_event_request_id"), ["request_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_event_time"), ["time"], unique=False)

    op.create_table(
        "client",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("client_name", sa.String(length=128), nullable=False),
        sa.Column("token_endpoint_auth_method", sa.String(length=32), nullable=False),
        sa.Column("token_ttl", sa.Integer(), nullable=True),
        sa.Column("strict", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("claims", sa.JSON(), nullable=False),
        sa.Column("disabled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("client_id", name=op.f("pk_client")),
    )
    op.create_table(
        "pepper",
        sa.Column("pepper_id", sa.String(length=32), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pepper_id", name=op.f("pk_pepper")),
    )
    op.create_table(
        "resource",
        sa.Column("resource", sa.String(length=512), nullable=False),
        sa.Column("resource_name", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("resource", name=op.f("pk_resource")),
    )
    op.create_table(
        "signing_key",
        sa.Column("kid", sa.String(length=64), nullable=False),
        sa.Column("alg", sa.String(length=16), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_signing_key")),
    )
    op.create_table(
        "client_secret",
        sa.Column("secret_id", sa.String(length=32), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("pepper_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"],
            ["client.client_id"],
            name=op.f("fk_client_secret_client_id_client"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["pepper_id"], ["pepper.pepper_id"], name=op.f("fk_client_secret_pepper_id_pepper")),
        sa.PrimaryKeyConstraint("secret_id", name=op.f("pk_client_secret")),
    )
    with op.batch_alter_table("client_secret") as batch_op:
        batch_op.create_index(batch_op.f("ix_client_secret_client_id"), ["client_id"], unique=False)

    op.create_table(
        "resource_scope",
        sa.Column("resource", sa.String(length=512), nullable=False),
        sa.Column("scope", sa.String(length=128), nullable=False),
        sa.Column("description", sa.String(length=512), nullable=False),
        sa.Column("implies", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["resource"],
            ["resource.resource"],
            name=op.f("fk_resource_scope_resource_resource"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("resource", "scope", name=op.f("pk_resource_scope")),
    )
    op.create_table(
        "client_grant",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=512), nullable=False),
        sa.Column("scope", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"],
            ["client.client_id"],
            name=op.f("fk_client_grant_client_id_client"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["resource", "scope"],
            ["resource_scope.resource", "resource_scope.scope"],
            name=op.f("fk_client_grant_resource_scope_resource_scope"),
        ),
        sa.PrimaryKeyConstraint("client_id", "resource", "scope", name=op.f("pk_client_grant")),
    )


def downgrade() -> None:
    op.drop_table("client_grant")
    op.drop_table("resource_scope")
    with op.batch_alter_table("client_secret") as batch_op:
        batch_op.drop_index(batch_op.f("ix_client_secret_client_id"))

    op.drop_table("client_secret")
    op.drop_table("signing_key")
    op.drop_table("resource")
    op.drop_table("pepper")
    op.drop_table("client")
    with op.batch_alter_table("audit_event") as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_event_time"))
        batch_op.drop_index(batch_op.f("ix_audit_event_request_id"))
        batch_op.drop_index(batch_op.f("ix_audit_event_jti"))
        batch_op.drop_index(batch_op.f("ix_audit_event_actor"))

    op.drop_table("audit_event")
