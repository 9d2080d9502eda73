"""`POST /revoke` (RFC 7009): a client revokes one of its own tokens."""

from dataclasses import dataclass

from gatehouse.authserver.clients.authentication import AuthenticatedClient, ClientAuthenticator, read_credentials
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.errors import invalid_request
from gatehouse.authserver.http import NO_STORE, Request, Response, parse_form
from gatehouse.authserver.keys.store import KeyRing, KeyStore
from gatehouse.authserver.tokens.status_lists import revoke_token
from gatehouse.authserver.tokens.validation import InactiveToken, TokenReader
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditWriter
from gatehouse.shared.service.limits import Limit

ACTION = AuditAction.TOKEN_REVOKE


@dataclass(frozen=True, slots=True)
class RevocationEndpoint:
    """Answers 200 to every authenticated client, whatever the token was (RFC 7009 2.2).

    A text that is not a token, and a token of another client, change nothing. `token_type_hint` is ignored (2.1):
    there are only access tokens.
    """

    database: Database
    keys: KeyStore
    authenticator: ClientAuthenticator
    tokens: TokenReader
    audit: AuditWriter
    limit: Limit
    """Of requests per client, once it has authenticated."""
    clock: Clock

    def __call__(self, request: Request) -> Response:
        """Answer one request. A refusal is raised as OAuthError or BadRequest."""
        form = parse_form(request)
        credentials = read_credentials(request, form)
        keys, now = self.keys.ring(), self.clock()
        client = self.authenticator.authenticate_and_wait(request, credentials, keys, now, self.limit)
        token = form.parameters.get("token")
        if token is None:
            raise invalid_request("token is missing. Send the access token to revoke.")
        self._revoke(request, client, token, keys, now)
        return Response(200, headers=NO_STORE)

    def _revoke(self, request: Request, client: AuthenticatedClient, token: str, keys: KeyRing, now: float) -> None:
        """Set the token's bit in one transaction with its audit event, or record why nothing was revoked."""
        actor = client.client.client_id
        try:
            claims, index = self.tokens.read(token, keys, now, client_id=actor)
        except InactiveToken as inactive:
            event = AuditEvent(
                ACTION,
                "refused",
                actor=actor,
                jti=inactive.jti,
                request_id=request.request_id,
                reason=inactive.reason,
                detail=request.external,
            )
            self.audit.commit_and_wait(event)
            return
        event = AuditEvent(
            ACTION,
            "allowed",
            actor=actor,
            object=claims.aud,
            jti=claims.jti,
            request_id=request.request_id,
            detail=request.external,
        )
        with self.database.write() as session:
            revoke_token(session, index.list_id, index.idx)
            self.audit.rows.record(session, event)
