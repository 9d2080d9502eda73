"""The tables of the resource server. Times are seconds since the epoch."""

from sqlalchemy import BigInteger, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from gatehouse.shared.audit import audit_table
from gatehouse.shared.database import new_metadata


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


class OrganizationRow(Base):
    """An organization of an environment."""

    __tablename__ = "organization"
    __table_args__ = (UniqueConstraint("environment_id", "external_id"),)
    organization_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environment.environment_id"))
    name: Mapped[str] = mapped_column(String(128))
    external_id: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)


audit_event = audit_table(Base.metadata)
