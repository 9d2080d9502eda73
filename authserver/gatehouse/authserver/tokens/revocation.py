"""What an admin revokes. Every change commits together with its audit event."""

from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.clients.lookup import locked_client
from gatehouse.authserver.db.status_lists import revoke_client, revoke_token
from gatehouse.authserver.tokens.indices import parse_jti
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit import AuditAction


def revoke_by_jti(session: Session, admin: Administrator, jti: str) -> str:
    """Take the token of a `jti` back. Return whose it was.

    Raises:
        Refused: it is no `jti` of this server's, or its token has expired.
    """
    index = parse_jti(jti)
    if index is None:
        raise Refused("That is no jti of this server's. Find it in: authserver audit --action token.issue")
    client_id = revoke_token(session, index.list_id, index.idx)
    if client_id is None:
        raise Refused("There is no live token of that jti: it has expired, or was never issued.")
    admin.record(session, AuditAction.TOKEN_REVOKE, client_id, jti=jti)
    return client_id


def revoke_all(session: Session, admin: Administrator, client_id: str) -> None:
    """Take every token of a client back, and leave it enabled. Raises Refused when there is no such client."""
    locked_client(session, client_id)
    revoke_client(session, client_id)
    admin.record(session, AuditAction.TOKEN_REVOKE, client_id, all=True)
