"""The directory's tables. Times are seconds since the epoch."""

from sqlalchemy import JSON, BigInteger, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from gatehouse.shared.service.database import new_metadata


class Base(DeclarativeBase):
    """The models' common metadata."""

    metadata = new_metadata()


class WorkspaceRow(Base):
    """A tenant."""

    __tablename__ = "workspace"
    workspace_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[int] = mapped_column(BigInteger)


class EnvironmentRow(Base):
    """An environment of a workspace."""

    __tablename__ = "environment"
    __table_args__ = (UniqueConstraint("workspace_id", "name"),)
    environment_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspace.workspace_id"))
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)
    initiate_login_uri: Mapped[str | None] = mapped_column(String(1024))


class OrganizationRow(Base):
    """An organization of an environment."""

    __tablename__ = "organization"
    __table_args__ = (UniqueConstraint("environment_id", "external_id"),)
    organization_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environment.environment_id"))
    name: Mapped[str] = mapped_column(String(128))
    external_id: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)


class WorkspaceMemberRow(Base):
    """A member of a workspace, or an invitation."""

    __tablename__ = "workspace_member"
    __table_args__ = (UniqueConstraint("workspace_id", "email"),)
    user_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspace.workspace_id"))
    email: Mapped[str] = mapped_column(String(254))
    role: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)


class EnvironmentRoleRow(Base):
    """A role of an environment, for the users of its organizations."""

    __tablename__ = "environment_role"
    __table_args__ = (UniqueConstraint("environment_id", "name"),)
    role_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environment.environment_id"))
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str] = mapped_column(String(512))
    created_at: Mapped[int] = mapped_column(BigInteger)


class EnvironmentScopeRow(Base):
    """A scope of an environment, for its MCP servers."""

    __tablename__ = "environment_scope"
    __table_args__ = (UniqueConstraint("environment_id", "name"),)
    scope_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environment.environment_id"))
    name: Mapped[str] = mapped_column(String(128))
    description: Mapped[str] = mapped_column(String(512))
    created_at: Mapped[int] = mapped_column(BigInteger)


class ConnectionRow(Base):
    """An identity provider of an environment or of one organization. Contains no secret."""

    __tablename__ = "connection"
    __table_args__ = (UniqueConstraint("environment_id", "issuer", "client_id"),)
    connection_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environment.environment_id"))
    organization_id: Mapped[str | None] = mapped_column(ForeignKey("organization.organization_id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    display_name: Mapped[str] = mapped_column(String(128))
    issuer: Mapped[str] = mapped_column(String(512))
    client_id: Mapped[str] = mapped_column(String(255))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    token_endpoint_auth_method: Mapped[str] = mapped_column(String(32))
    enabled_at: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)


class McpServerRow(Base):
    """A registered MCP server of an environment."""

    __tablename__ = "mcp_server"
    __table_args__ = (UniqueConstraint("environment_id", "url"),)
    mcp_server_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environment.environment_id"))
    name: Mapped[str] = mapped_column(String(128))
    url: Mapped[str] = mapped_column(String(512))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)


class RedirectUriRow(Base):
    """A redirect URI or post-logout redirect URI of an environment."""

    __tablename__ = "redirect_uri"
    __table_args__ = (UniqueConstraint("environment_id", "kind", "uri"),)
    redirect_uri_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environment.environment_id"))
    kind: Mapped[str] = mapped_column(String(32))
    uri: Mapped[str] = mapped_column(String(1024))
    created_at: Mapped[int] = mapped_column(BigInteger)


class OrganizationSettingsRow(Base):
    """The settings of an organization. There is no row while all have their defaults."""

    __tablename__ = "organization_settings"
    organization_id: Mapped[str] = mapped_column(ForeignKey("organization.organization_id"), primary_key=True)
    mfa_required: Mapped[bool]
    allowed_email_domains: Mapped[list[str]] = mapped_column(JSON)
    session_lifetime_minutes: Mapped[int]


class OrganizationUserRow(Base):
    """A user of an organization."""

    __tablename__ = "organization_user"
    __table_args__ = (UniqueConstraint("organization_id", "email"),)
    user_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organization.organization_id"))
    email: Mapped[str] = mapped_column(String(254))
    name: Mapped[str | None] = mapped_column(String(128))
    role_id: Mapped[str | None] = mapped_column(ForeignKey("environment_role.role_id"))
    created_at: Mapped[int] = mapped_column(BigInteger)
    environment_role: Mapped[EnvironmentRoleRow | None] = relationship(lazy="joined")

    @property
    def role(self) -> str | None:
        """The name of the user's role; None for none."""
        return self.environment_role.name if self.environment_role is not None else None
