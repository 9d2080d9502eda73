"""The gateway's tables: the audit log, idempotency keys, sessions of callers at an upstream, and the heartbeat."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_checkpoint",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False, comment="counts without gaps"),
        sa.Column("time", sa.BigInteger(), nullable=False, comment="milliseconds since the epoch"),
        sa.Column("kid", sa.String(length=32), nullable=False, comment="the key of the link"),
        sa.Column("kind", sa.String(length=8), nullable=False, comment="heads or prune"),
        sa.Column("content", sa.Text(), nullable=False, comment="JSON"),
        sa.Column(
            "link",
            sa.String(length=64),
            nullable=False,
            comment="authenticates the checkpoint and the one before it",
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_checkpoint")),
    )
    op.create_table(
        "audit_event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False, comment="milliseconds since the epoch"),
        sa.Column("writer", sa.String(length=32), nullable=False, comment="the chain that the row belongs to"),
        sa.Column("sequence", sa.BigInteger(), nullable=False, comment="counts the rows of one writer"),
        sa.Column("kid", sa.String(length=32), nullable=False, comment="the key of the link"),
        sa.Column(
            "link",
            sa.String(length=64),
            nullable=False,
            comment="authenticates the row and the writer's row before it",
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
        "heartbeat",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False, comment="seconds since the epoch"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_heartbeat")),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("static_claims", sa.String(length=64), nullable=False),
        sa.Column("client_id", sa.String(length=255), nullable=False),
        sa.Column("tool", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("arguments", sa.LargeBinary(length=32), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("static_claims", "client_id", "tool", "key", name=op.f("pk_idempotency_key")),
    )
    op.create_index(op.f("ix_idempotency_key_created_at"), "idempotency_key", ["created_at"], unique=False)
    op.create_table(
        "upstream_session",
        sa.Column("upstream", sa.String(length=64), nullable=False),
        sa.Column("client_id", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("session", sa.LargeBinary(), nullable=False),
        sa.Column("session_digest", sa.String(length=64), nullable=False),
        sa.Column("protocol_version", sa.String(length=10), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("upstream", "client_id", "subject", name=op.f("pk_upstream_session")),
        sa.UniqueConstraint("upstream", "session_digest", name=op.f("uq_upstream_session_upstream_session_digest")),
    )
    op.create_index(op.f("ix_upstream_session_last_used_at"), "upstream_session", ["last_used_at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_upstream_session_last_used_at"), "upstream_session")
    op.drop_table("upstream_session")
    op.drop_index(op.f("ix_idempotency_key_created_at"), "idempotency_key")
    op.drop_table("idempotency_key")
    op.drop_table("heartbeat")
    with op.batch_alter_table("audit_event") as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_event_time"))
        batch_op.drop_index(batch_op.f("ix_audit_event_request_id"))
        batch_op.drop_index(batch_op.f("ix_audit_event_jti"))
        batch_op.drop_index(batch_op.f("ix_audit_event_actor"))

    op.drop_table("audit_event")
    op.drop_table("audit_checkpoint")
