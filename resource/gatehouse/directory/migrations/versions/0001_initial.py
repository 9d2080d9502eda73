"""The directory's tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workspace",
        sa.Column("workspace_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", name=op.f("pk_workspace")),
        sa.UniqueConstraint("name", name=op.f("uq_workspace_name")),
    )
    op.create_table(
        "environment",
        sa.Column("environment_id", sa.String(length=32), nullable=False),
        sa.Column("workspace_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("initiate_login_uri", sa.String(length=1024), nullable=True),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspace.workspace_id"], name=op.f("fk_environment_workspace_id_workspace")
        ),
        sa.PrimaryKeyConstraint("environment_id", name=op.f("pk_environment")),
        sa.UniqueConstraint("workspace_id", "name", name=op.f("uq_environment_workspace_id_name")),
    )
    op.create_table(
        "organization",
        sa.Column("organization_id", sa.String(length=32), nullable=False),
        sa.Column("environment_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("external_id", sa.String(length=128), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environment.environment_id"], name=op.f("fk_organization_environment_id_environment")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_organization")),
        sa.UniqueConstraint("environment_id", "external_id", name=op.f("uq_organization_environment_id_external_id")),
    )
    op.create_table(
        "workspace_member",
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("workspace_id", sa.String(length=32), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspace.workspace_id"], name=op.f("fk_workspace_member_workspace_id_workspace")
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_workspace_member")),
        sa.UniqueConstraint("workspace_id", "email", name=op.f("uq_workspace_member_workspace_id_email")),
    )
    op.create_table(
        "environment_role",
        sa.Column("role_id", sa.String(length=32), nullable=False),
        sa.Column("environment_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("description", sa.String(length=512), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"],
            ["environment.environment_id"],
            name=op.f("fk_environment_role_environment_id_environment"),
        ),
        sa.PrimaryKeyConstraint("role_id", name=op.f("pk_environment_role")),
        sa.UniqueConstraint("environment_id", "name", name=op.f("uq_environment_role_environment_id_name")),
    )
    op.create_table(
        "environment_scope",
        sa.Column("scope_id", sa.String(length=32), nullable=False),
        sa.Column("environment_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("description", sa.String(length=512), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"],
            ["environment.environment_id"],
            name=op.f("fk_environment_scope_environment_id_environment"),
        ),
        sa.PrimaryKeyConstraint("scope_id", name=op.f("pk_environment_scope")),
        sa.UniqueConstraint("environment_id", "name", name=op.f("uq_environment_scope_environment_id_name")),
    )
    op.create_table(
        "connection",
        sa.Column("connection_id", sa.String(length=32), nullable=False),
        sa.Column("environment_id", sa.String(length=32), nullable=False),
        sa.Column("organization_id", sa.String(length=32), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("display_name", sa.String(length=128), nullable=False),
        sa.Column("issuer", sa.String(length=512), nullable=False),
        sa.Column("client_id", sa.String(length=255), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("token_endpoint_auth_method", sa.String(length=32), nullable=False),
        sa.Column("enabled_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environment.environment_id"], name=op.f("fk_connection_environment_id_environment")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.organization_id"],
            name=op.f("fk_connection_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("connection_id", name=op.f("pk_connection")),
        sa.UniqueConstraint(
            "environment_id", "issuer", "client_id", name=op.f("uq_connection_environment_id_issuer_client_id")
        ),
    )
    op.create_index(op.f("ix_connection_organization_id"), "connection", ["organization_id"], unique=False)
    op.create_table(
        "mcp_server",
        sa.Column("mcp_server_id", sa.String(length=32), nullable=False),
        sa.Column("environment_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("url", sa.String(length=512), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environment.environment_id"], name=op.f("fk_mcp_server_environment_id_environment")
        ),
        sa.PrimaryKeyConstraint("mcp_server_id", name=op.f("pk_mcp_server")),
        sa.UniqueConstraint("environment_id", "url", name=op.f("uq_mcp_server_environment_id_url")),
    )
    op.create_table(
        "redirect_uri",
        sa.Column("redirect_uri_id", sa.String(length=32), nullable=False),
        sa.Column("environment_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("uri", sa.String(length=1024), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environment.environment_id"], name=op.f("fk_redirect_uri_environment_id_environment")
        ),
        sa.PrimaryKeyConstraint("redirect_uri_id", name=op.f("pk_redirect_uri")),
        sa.UniqueConstraint("environment_id", "kind", "uri", name=op.f("uq_redirect_uri_environment_id_kind_uri")),
    )
    op.create_table(
        "organization_settings",
        sa.Column("organization_id", sa.String(length=32), nullable=False),
        sa.Column("mfa_required", sa.Boolean(), nullable=False),
        sa.Column("allowed_email_domains", sa.JSON(), nullable=False),
        sa.Column("session_lifetime_minutes", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.organization_id"],
            name=op.f("fk_organization_settings_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_organization_settings")),
    )
    op.create_table(
        "organization_user",
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("organization_id", sa.String(length=32), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=True),
        sa.Column("role_id", sa.String(length=32), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.organization_id"],
            name=op.f("fk_organization_user_organization_id_organization"),
        ),
        sa.ForeignKeyConstraint(
            ["role_id"], ["environment_role.role_id"], name=op.f("fk_organization_user_role_id_environment_role")
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_organization_user")),
        sa.UniqueConstraint("organization_id", "email", name=op.f("uq_organization_user_organization_id_email")),
    )


def downgrade() -> None:
    for table in (
        *("organization_user", "organization_settings", "redirect_uri", "mcp_server"),
        *("connection", "environment_scope", "environment_role", "workspace_member"),
        *("organization", "environment", "workspace"),
    ):
        op.drop_table(table)
