"""Revocation of tokens by an administrator. Each change commits together with its audit event."""

from sqlalchemy.orm import Session

from gatehouse.authserver.clients.registry import lock_client
from gatehouse.authserver.tokens.issue import parse_jti
from gatehouse.authserver.tokens.status_lists import revoke_client, revoke_token
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction


def revoke_by_jti(session: Session, admin: Administrator, jti: str) -> str:
    """Revoke the token of a `jti`. Return its client's id.

    Raises:
        CommandRefused: this server did not generate the `jti`, or its token has expired.
    """
    index = parse_jti(jti)
    if index is None:
        raise CommandRefused(
            "This server did not issue a token with that jti. To find it, run: authserver audit --action token.issue"
        )
    client_id = revoke_token(session, index.list_id, index.idx)
    if client_id is None:
        raise CommandRefused("No active token has that jti: it has expired, or was never issued.")
    admin.record(session, AuditAction.TOKEN_REVOKE, client_id, jti=jti)
    return client_id


def revoke_all(session: Session, admin: Administrator, client_id: str) -> None:
    """Revoke every token of a client, and leave it enabled. Raises CommandRefused if there is no such client."""
    lock_client(session, client_id)
    revoke_client(session, client_id)
    admin.record(session, AuditAction.TOKEN_REVOKE, client_id, all=True)
