"""The first schema."""

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
    op.create_index(op.f("ix_audit_event_actor"), "audit_event", ["actor"])
    op.create_index(op.f("ix_audit_event_jti"), "audit_event", ["jti"])
    op.create_index(op.f("ix_audit_event_request_id"), "audit_event", ["request_id"])
    op.create_index(op.f("ix_audit_event_time"), "audit_event", ["time"])
    op.create_table(
        "client",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("client_name", sa.String(length=128), nullable=False),
        sa.Column("token_endpoint_auth_method", sa.String(length=32), nullable=False),
        sa.Column("token_ttl", sa.Integer(), nullable=True),
        sa.Column("strict", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("token_endpoint_audience", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("claims", sa.JSON(), nullable=False),
        sa.Column("disabled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("token_epoch", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("client_id", name=op.f("pk_client")),
    )
    op.create_table(
        "heartbeat",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False, comment="seconds since the epoch"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_heartbeat")),
    )
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=32), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    op.create_table(
        "unaccepted_restore",
        sa.Column("exported_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("exported_at", name=op.f("pk_unaccepted_restore")),
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
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.Column("activated_at", sa.BigInteger(), nullable=True),
        sa.Column("retired_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_signing_key")),
    )
    op.create_index(
        "uq_signing_key_active",
        "signing_key",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "spent_assertion",
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("jti_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("purpose", "client_id", "jti_digest", name=op.f("pk_spent_assertion")),
    )
    op.create_index(op.f("ix_spent_assertion_expires_at"), "spent_assertion", ["expires_at"])
    op.create_table(
        "trusted_issuer",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("issuer", sa.String(length=512), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("audience", sa.String(length=512), nullable=True),
        sa.Column("token_endpoint_audience", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("algorithms", sa.JSON(), nullable=False),
        sa.Column("max_lifetime", sa.Integer(), nullable=False),
        sa.Column("one_time", sa.Boolean(), nullable=False),
        sa.Column("discovery", sa.Boolean(), nullable=False),
        sa.Column("jwks_uri", sa.String(length=2048), nullable=True),
        sa.Column("ca_file", sa.String(length=1024), nullable=True),
        sa.Column("bearer_token_file", sa.String(length=1024), nullable=True),
        sa.Column("disabled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("jwks", sa.Text(), nullable=True),
        sa.Column("fetched_at", sa.BigInteger(), nullable=True),
        sa.Column("attempted_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failure", sa.String(length=512), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_trusted_issuer")),
    )
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
        "trust_rule",
        sa.Column("rule_id", sa.String(length=32), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("issuer", sa.String(length=64), nullable=False),
        sa.Column("anchor", sa.LargeBinary(length=32), nullable=False),
        sa.Column("conditions", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["client_id"], ["client.client_id"], name=op.f("fk_trust_rule_client_id_client"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["issuer"], ["trusted_issuer.name"], name=op.f("fk_trust_rule_issuer_trusted_issuer"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rule_id", name=op.f("pk_trust_rule")),
    )
    op.create_index(op.f("ix_trust_rule_anchor"), "trust_rule", ["anchor"])
    op.create_index(op.f("ix_trust_rule_client_id"), "trust_rule", ["client_id"])
    op.create_index(op.f("ix_trust_rule_issuer"), "trust_rule", ["issuer"])
    op.create_table(
        "client_key",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("thumbprint", sa.String(length=64), nullable=False),
        sa.Column("jwk", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["client_id"], ["client.client_id"], name=op.f("fk_client_key_client_id_client"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("client_id", "thumbprint", name=op.f("pk_client_key")),
    )
    op.create_table(
        "client_secret",
        sa.Column("secret_id", sa.String(length=32), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("pepper_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["client_id"], ["client.client_id"], name=op.f("fk_client_secret_client_id_client"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["pepper_id"], ["pepper.pepper_id"], name=op.f("fk_client_secret_pepper_id_pepper")),
        sa.PrimaryKeyConstraint("secret_id", name=op.f("pk_client_secret")),
    )
    op.create_index(op.f("ix_client_secret_client_id"), "client_secret", ["client_id"])
    op.create_table(
        "resource_credential",
        sa.Column("credential_id", sa.String(length=32), nullable=False),
        sa.Column("resource", sa.String(length=512), nullable=False),
        sa.Column("pepper_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["pepper_id"], ["pepper.pepper_id"], name=op.f("fk_resource_credential_pepper_id_pepper")
        ),
        sa.ForeignKeyConstraint(
            ["resource"],
            ["resource.resource"],
            name=op.f("fk_resource_credential_resource_resource"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("credential_id", name=op.f("pk_resource_credential")),
    )
    op.create_index(op.f("ix_resource_credential_resource"), "resource_credential", ["resource"])
    op.create_table(
        "resource_scope",
        sa.Column("resource", sa.String(length=512), nullable=False),
        sa.Column("scope", sa.String(length=128), nullable=False),
        sa.Column("description", sa.String(length=512), nullable=False),
        sa.Column("implies", sa.JSON(), nullable=False),
        sa.Column("declared", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.ForeignKeyConstraint(
            ["resource"], ["resource.resource"], name=op.f("fk_resource_scope_resource_resource"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("resource", "scope", name=op.f("pk_resource_scope")),
    )
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
    op.create_index(op.f("ix_revoked_token_expires_at"), "revoked_token", ["expires_at"])
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
    op.create_index(op.f("ix_status_block_client_id"), "status_block", ["client_id"])
    op.create_index(op.f("ix_status_block_expires_at"), "status_block", ["expires_at"])
    op.create_index(
        "ix_status_block_revoked",
        "status_block",
        ["list_id"],
        sqlite_where=sa.text("revoked = 1"),
        postgresql_where=sa.text("revoked"),
    )
    op.create_table(
        "client_grant",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=512), nullable=False),
        sa.Column("scope", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["client.client_id"], name=op.f("fk_client_grant_client_id_client"), ondelete="CASCADE"
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
    op.drop_table("status_block")
    op.drop_table("revoked_token")
    op.drop_table("resource_scope")
    op.drop_table("resource_credential")
    op.drop_table("client_secret")
    op.drop_table("trust_rule")
    op.drop_table("client_key")
    op.drop_table("status_list")
    op.drop_table("trusted_issuer")
    op.drop_table("spent_assertion")
    op.drop_table("signing_key")
    op.drop_table("resource")
    op.drop_table("pepper")
    op.drop_table("unaccepted_restore")
    op.drop_table("lease")
    op.drop_table("heartbeat")
    op.drop_table("client")
    op.drop_table("audit_event")
    op.drop_table("audit_checkpoint")
