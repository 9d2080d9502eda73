"""The audit log of both servers: its tables, its events and actions, and the search for events.

`writer` decides when an event is written and what that guarantees, `chain` how the rows prove that none was
altered or removed.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    and_,
    cast,
    or_,
    select,
)
from sqlalchemy.types import JSON

CLAIMED = "claimed:"
"""Prefix of the actor of an event whose author is not proven."""


class AuditAction(StrEnum):
    """Every action that an audit event can have."""

    AUDIT_KEY_ROTATE = "audit_key.rotate"
    AUDIT_PRUNE = "audit.prune"
    CLIENT_CREATE = "client.create"
    CLIENT_DELETE = "client.delete"
    CLIENT_DISABLE = "client.disable"
    CLIENT_ENABLE = "client.enable"
    CLIENT_GRANT_ADD = "client.grant.add"
    CLIENT_GRANT_REMOVE = "client.grant.remove"
    CLIENT_KEY_ROTATE = "client.key.rotate"
    CLIENT_KEY_REVOKE = "client.key.revoke"
    CLIENT_SECRET_REVOKE = "client.secret.revoke"  # noqa: S105 - an action
    CLIENT_SECRET_ROTATE = "client.secret.rotate"  # noqa: S105 - an action
    CLIENT_TRUST_ADD = "client.trust.add"
    CLIENT_TRUST_REMOVE = "client.trust.remove"
    CLIENT_UPDATE = "client.update"
    HTTP_REQUEST = "http.request"
    INSTALLATION_EXPORT = "installation.export"
    INSTALLATION_IMPORT = "installation.import"
    INSTALLATION_RESTORE = "installation.restore"
    ISSUER_ADD = "issuer.add"
    ISSUER_DISABLE = "issuer.disable"
    ISSUER_ENABLE = "issuer.enable"
    ISSUER_REMOVE = "issuer.remove"
    ISSUER_UPDATE = "issuer.update"
    KEY_ACTIVATE = "key.activate"
    KEY_CREATE = "key.create"
    KEY_REMOVE = "key.remove"
    KEY_RETIRE = "key.retire"
    KEY_REVOKE = "key.revoke"
    MCP_REQUEST = "mcp.request"
    RESOURCE_ADD = "resource.add"
    RESOURCE_CREDENTIAL_CREATE = "resource.credential.create"
    RESOURCE_CREDENTIAL_REVOKE = "resource.credential.revoke"
    RESOURCE_CREDENTIAL_ROTATE = "resource.credential.rotate"
    RESOURCE_READ = "resource.read"
    RESOURCE_REMOVE = "resource.remove"
    RESOURCE_UPDATE = "resource.update"
    SEALING_KEY_ROTATE = "sealing_key.rotate"
    TOKEN_INTROSPECT = "token.introspect"  # noqa: S105 - an action
    TOKEN_ISSUE = "token.issue"  # noqa: S105 - an action
    TOKEN_REVOKE = "token.revoke"  # noqa: S105 - an action
    TOOL_CALL = "tool.call"
    WORKSPACE_CREATE = "workspace.create"


_OF_BOTH = frozenset({AuditAction.AUDIT_KEY_ROTATE, AuditAction.AUDIT_PRUNE, AuditAction.HTTP_REQUEST})

RESOURCE_SERVER_ACTIONS = _OF_BOTH | frozenset(
    {
        AuditAction.MCP_REQUEST,
        AuditAction.RESOURCE_READ,
        AuditAction.TOOL_CALL,
        AuditAction.WORKSPACE_CREATE,
    }
)
"""What the resource server and its catalogues record."""

AUTHSERVER_ACTIONS = frozenset(AuditAction) - RESOURCE_SERVER_ACTIONS | _OF_BOTH
"""What the authorization server records."""


class AuditEvent(NamedTuple):
    """One action, allowed or refused. Never holds a token, secret, assertion or tool argument."""

    action: AuditAction
    """What was attempted."""
    outcome: str
    """`allowed`, `refused`, or `failed` (allowed, but without the expected result)."""
    actor: str | None = None
    """The client_id, `admin:NAME` for the command line, or `claimed:CLIENT_ID` if nothing was proven."""
    object: str | None = None
    """The object of the action: a client_id, a tool, a resource."""
    jti: str | None = None
    """The token's identifier. It joins the audit logs of both servers."""
    request_id: str | None = None
    reason: str | None = None
    """Why the action was refused, for the operator."""
    detail: Mapping[str, Any] = MappingProxyType({})
    """Further members, as JSON."""


class AuditTables(NamedTuple):
    """The tables of an audit log."""

    events: Table
    checkpoints: Table

    @classmethod
    def declare(cls, metadata: MetaData) -> "AuditTables":
        """Declare the tables on a server's metadata."""
        return cls(_event_table(metadata), _checkpoint_table(metadata))


def _event_table(metadata: MetaData) -> Table:
    return Table(
        "audit_event",
        metadata,
        # SQLite numbers only plain INTEGER keys by itself.
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("time", BigInteger, nullable=False, index=True, comment="milliseconds since the epoch"),
        Column("writer", String(32), nullable=False, comment="the chain that the row belongs to"),
        Column("sequence", BigInteger, nullable=False, comment="counts the rows of one writer"),
        Column("kid", String(32), nullable=False, comment="the key of the link"),
        Column("link", String(64), nullable=False, comment="authenticates the row and the writer's row before it"),
        Column("request_id", String(64), index=True),
        Column("actor", String(255), index=True),
        Column("jti", String(64), index=True),
        Column("action", String(64), nullable=False),
        Column("object", String(512)),
        Column("outcome", String(16), nullable=False),
        Column("reason", Text),
        Column("detail", JSON, nullable=False),
    )


def _checkpoint_table(metadata: MetaData) -> Table:
    return Table(
        "audit_checkpoint",
        metadata,
        Column("number", BigInteger, primary_key=True, autoincrement=False, comment="counts without gaps"),
        Column("time", BigInteger, nullable=False, comment="milliseconds since the epoch"),
        Column("kid", String(32), nullable=False, comment="the key of the link"),
        Column("kind", String(8), nullable=False, comment="heads or prune"),
        Column("content", Text, nullable=False, comment="JSON"),
        Column("link", String(64), nullable=False, comment="authenticates the checkpoint and the one before it"),
    )


def stored_columns(events: Table, names: Sequence[str]) -> list[ColumnElement[Any]]:
    """Return columns as they are stored: the text of the detail, not the value that it stands for."""
    return [cast(events.c.detail, Text) if name == "detail" else events.c[name] for name in names]


def event_conditions(
    table: Table,
    *,
    client: str | None = None,
    jti: str | None = None,
    request_id: str | None = None,
    action: str | None = None,
    since: float | None = None,
    until: float | None = None,
) -> list[ColumnElement[bool]]:
    """Return the conditions of matching events.

    `client` finds what a client did or was refused, and what admins did to it. `since` and `until` are seconds since
    the epoch: events from the first, and before the second.
    """
    equal = ((table.c.jti, jti), (table.c.request_id, request_id), (table.c.action, action))
    conditions: list[ColumnElement[bool]] = [column == value for column, value in equal if value is not None]
    if client is not None:
        # Callers choose the object of a call, so it proves nothing; only admins act on clients.
        done_to_it = and_(table.c.object == client, table.c.actor.startswith("admin:"))
        conditions.append(or_(table.c.actor.in_([client, f"{CLAIMED}{client}"]), done_to_it))
    if since is not None:
        conditions.append(table.c.time >= int(since * 1000))
    if until is not None:
        conditions.append(table.c.time < int(until * 1000))
    return conditions


def find_events(
    connection: Connection, table: Table, *, limit: int = 50, **filters: Any
) -> Sequence[Mapping[str, Any]]:
    """Return the newest matching events, oldest of them first. Times are milliseconds since the epoch.

    `filters` are the keyword arguments of `event_conditions`.
    """
    query: Select[Any] = select(table).where(*event_conditions(table, **filters))
    rows = connection.execute(query.order_by(table.c.time.desc(), table.c.id.desc()).limit(limit))
    newest_first: list[Mapping[str, Any]] = [dict(row) for row in rows.mappings()]
    return newest_first[::-1]
