"""Tables of the authorization server. Times are seconds since the epoch."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    false,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from gatehouse.shared.service.audit.events import AuditTables
from gatehouse.shared.service.database import new_metadata
from gatehouse.shared.service.heartbeat import heartbeat_table

_CASCADE = "CASCADE"


class Base(DeclarativeBase):
    """Base of the models, with their common metadata."""

    metadata = new_metadata()


class ClientRow(Base):
    """A registered client (RFC 6749 2; member names as in RFC 7591 2)."""

    __tablename__ = "client"
    client_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    client_name: Mapped[str] = mapped_column(String(128))
    token_endpoint_auth_method: Mapped[str] = mapped_column(String(32))
    token_ttl: Mapped[int | None] = mapped_column(Integer)
    strict: Mapped[bool] = mapped_column(Boolean, server_default=false())
    token_endpoint_audience: Mapped[bool] = mapped_column(Boolean, server_default=false())
    claims: Mapped[dict[str, Any]] = mapped_column(JSON)
    disabled: Mapped[bool] = mapped_column(Boolean, server_default=false())
    created_at: Mapped[int] = mapped_column(BigInteger)
    token_epoch: Mapped[int] = mapped_column(Integer, server_default="0")


class PepperRow(Base):
    """A sealed key for the digests of client secrets and resource credentials."""

    __tablename__ = "pepper"
    pepper_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[int] = mapped_column(BigInteger)


class CredentialRow:
    """Columns of every credential."""

    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked: Mapped[bool] = mapped_column(Boolean, server_default=false(), default=False)
    """Inactive whatever a node's clock says. `expires_at` is then the time of the revocation."""
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)


class ClientSecretRow(CredentialRow, Base):
    """The digest of one client secret."""

    __tablename__ = "client_secret"
    secret_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("client.client_id", ondelete=_CASCADE), index=True)
    pepper_id: Mapped[str] = mapped_column(ForeignKey("pepper.pepper_id"))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    prefix: Mapped[str] = mapped_column(String(16))


class ClientKeyRow(CredentialRow, Base):
    """A public key of a client that authenticates by private_key_jwt."""

    __tablename__ = "client_key"
    client_id: Mapped[str] = mapped_column(ForeignKey("client.client_id", ondelete=_CASCADE), primary_key=True)
    thumbprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    jwk: Mapped[dict[str, Any]] = mapped_column(JSON)


class TrustedIssuerRow(Base):
    """A platform whose tokens identify workloads, with its last good key set."""

    __tablename__ = "trusted_issuer"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    issuer: Mapped[str] = mapped_column(String(512))
    kind: Mapped[str] = mapped_column(String(16))
    audience: Mapped[str | None] = mapped_column(String(512))
    token_endpoint_audience: Mapped[bool] = mapped_column(Boolean, server_default=false())
    algorithms: Mapped[list[str]] = mapped_column(JSON)
    max_lifetime: Mapped[int] = mapped_column(Integer)
    one_time: Mapped[bool] = mapped_column(Boolean)
    discovery: Mapped[bool] = mapped_column(Boolean)
    jwks_uri: Mapped[str | None] = mapped_column(String(2048))
    ca_file: Mapped[str | None] = mapped_column(String(1024))
    bearer_token_file: Mapped[str | None] = mapped_column(String(1024))
    disabled: Mapped[bool] = mapped_column(Boolean, server_default=false())
    created_at: Mapped[int] = mapped_column(BigInteger)
    jwks: Mapped[str | None] = mapped_column(Text)
    fetched_at: Mapped[int | None] = mapped_column(BigInteger)
    attempted_at: Mapped[int] = mapped_column(BigInteger, server_default="0")
    failure: Mapped[str | None] = mapped_column(String(512))


class TrustRuleRow(Base):
    """Conditions under which a token of a trusted issuer identifies a client."""

    __tablename__ = "trust_rule"
    rule_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("client.client_id", ondelete=_CASCADE), index=True)
    issuer: Mapped[str] = mapped_column(ForeignKey("trusted_issuer.name", ondelete=_CASCADE), index=True)
    anchor: Mapped[bytes] = mapped_column(LargeBinary(32), index=True)
    """The digest of the identifying conditions and their values, by which the rules of a token are found."""
    conditions: Mapped[dict[str, str]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)


class SpentAssertionRow(Base):
    """An assertion that was used. The primary key prevents its second use."""

    __tablename__ = "spent_assertion"
    purpose: Mapped[str] = mapped_column(String(32), primary_key=True)
    client_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    jti_digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


class ResourceRow(Base):
    """A resource that tokens can be issued for (RFC 8707), with its canonical identifier."""

    __tablename__ = "resource"
    resource: Mapped[str] = mapped_column(String(512), primary_key=True)
    resource_name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)


class ResourceScopeRow(Base):
    """A scope of a resource, and the scopes that it implies at this resource."""

    __tablename__ = "resource_scope"
    resource: Mapped[str] = mapped_column(ForeignKey("resource.resource", ondelete=_CASCADE), primary_key=True)
    scope: Mapped[str] = mapped_column(String(128), primary_key=True)
    description: Mapped[str] = mapped_column(String(512))
    implies: Mapped[list[str]] = mapped_column(JSON)
    declared: Mapped[bool] = mapped_column(Boolean, server_default=true())


class ClientGrantRow(Base):
    """A scope granted to a client at a resource."""

    __tablename__ = "client_grant"
    __table_args__ = (ForeignKeyConstraint(["resource", "scope"], ["resource_scope.resource", "resource_scope.scope"]),)
    client_id: Mapped[str] = mapped_column(ForeignKey("client.client_id", ondelete=_CASCADE), primary_key=True)
    resource: Mapped[str] = mapped_column(String(512), primary_key=True)
    scope: Mapped[str] = mapped_column(String(128), primary_key=True)


class SigningKeyRow(Base):
    """A signing key. Only its private key is stored, sealed; the published key is derived from it."""

    __tablename__ = "signing_key"
    __table_args__ = (
        # The migration gives the index the same condition on PostgreSQL. The option for it is missing here, because it
        # would make every command import that dialect.
        Index(
            "uq_signing_key_active",
            "state",
            unique=True,
            sqlite_where=text("state = 'active'"),
        ),
    )
    kid: Mapped[str] = mapped_column(String(64), primary_key=True)
    alg: Mapped[str] = mapped_column(String(16))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    published_at: Mapped[int] = mapped_column(BigInteger)
    activated_at: Mapped[int | None] = mapped_column(BigInteger)
    retired_at: Mapped[int | None] = mapped_column(BigInteger)


class LeaseRow(Base):
    """Leader lease for background maintenance."""

    __tablename__ = "lease"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(32))
    expires_at: Mapped[int] = mapped_column(BigInteger)


class UnacceptedRestoreRow(Base):
    """A backup of a server that was in use, imported or restored under a server. While there is one, none starts.

    `exported_at` is the time, in seconds since the epoch, from which events are missing.
    """

    __tablename__ = "unaccepted_restore"
    exported_at: Mapped[int] = mapped_column(BigInteger, primary_key=True)


class ResourceCredentialRow(CredentialRow, Base):
    """A credential of a resource for introspection. It cannot obtain tokens."""

    __tablename__ = "resource_credential"
    credential_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    resource: Mapped[str] = mapped_column(ForeignKey("resource.resource", ondelete=_CASCADE), index=True)
    pepper_id: Mapped[str] = mapped_column(ForeignKey("pepper.pepper_id"))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    prefix: Mapped[str] = mapped_column(String(16))


class StatusListRow(Base):
    """A status list: the number of its reserved indices, and of the changes to its bits."""

    __tablename__ = "status_list"
    list_id: Mapped[str] = mapped_column(String(12), primary_key=True)
    next_index: Mapped[int] = mapped_column(Integer)
    version: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)


class StatusBlockRow(Base):
    """Indices reserved together for one client. It does not reference the client, which its tokens may outlive."""

    __tablename__ = "status_block"
    # With the same condition on PostgreSQL, as for SigningKeyRow.
    __table_args__ = (Index("ix_status_block_revoked", "list_id", sqlite_where=text("revoked = 1")),)
    list_id: Mapped[str] = mapped_column(ForeignKey("status_list.list_id", ondelete=_CASCADE), primary_key=True)
    start: Mapped[int] = mapped_column(Integer, primary_key=True)
    size: Mapped[int] = mapped_column(Integer)
    client_id: Mapped[str] = mapped_column(String(64), index=True)
    revoked: Mapped[bool] = mapped_column(Boolean, server_default=false())
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


class RevokedTokenRow(Base):
    """A token that was revoked on its own."""

    __tablename__ = "revoked_token"
    list_id: Mapped[str] = mapped_column(ForeignKey("status_list.list_id", ondelete=_CASCADE), primary_key=True)
    idx: Mapped[int] = mapped_column(Integer, primary_key=True)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


audit_tables = AuditTables.declare(Base.metadata)
audit_event = audit_tables.events
heartbeat = heartbeat_table(Base.metadata)
