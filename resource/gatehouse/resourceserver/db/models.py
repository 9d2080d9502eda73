"""The gateway's own tables. Times are seconds since the epoch."""

from sqlalchemy import BigInteger, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from gatehouse.shared.service.audit.events import AuditTables
from gatehouse.shared.service.database import new_metadata
from gatehouse.shared.service.heartbeat import heartbeat_table


class Base(DeclarativeBase):
    """The models' common metadata."""

    metadata = new_metadata()


class IdempotencyKeyRow(Base):
    """An idempotency key and the result of its call. A concurrent second use violates the primary key."""

    __tablename__ = "idempotency_key"
    static_claims: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the static claims of the caller's token, in hexadecimal digits."""
    client_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    tool: Mapped[str] = mapped_column(String(255), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    arguments: Mapped[bytes] = mapped_column(LargeBinary(32))
    """SHA-256 digest of the arguments."""
    result: Mapped[str] = mapped_column(Text)
    """JSON. Empty only within the transaction of the call."""
    created_at: Mapped[int] = mapped_column(BigInteger, index=True)


class UpstreamSessionRow(Base):
    """The session of a caller with a stateful upstream. All workers and nodes use the same."""

    __tablename__ = "upstream_session"
    # A session that an upstream gives to a second caller is refused.
    __table_args__ = (UniqueConstraint("upstream", "session_digest"),)
    upstream: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the upstream's URL and credential, in hexadecimal digits."""
    client_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    subject: Mapped[str] = mapped_column(String(255), primary_key=True)
    session: Mapped[bytes] = mapped_column(LargeBinary)
    """The session id, encrypted. The encryption binds it to the other columns of the key."""
    session_digest: Mapped[str] = mapped_column(String(64))
    """Keyed digest of the session id, in hexadecimal digits."""
    protocol_version: Mapped[str] = mapped_column(String(10))
    created_at: Mapped[int] = mapped_column(BigInteger)
    last_used_at: Mapped[int] = mapped_column(BigInteger, index=True)
    """At most TOUCH_INTERVAL seconds older than the last use."""


audit_tables = AuditTables.declare(Base.metadata)
audit_event = audit_tables.events
heartbeat = heartbeat_table(Base.metadata)
