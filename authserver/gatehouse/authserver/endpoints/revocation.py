"""`POST /revoke` (RFC 7009): a client takes one of its own tokens back."""

from gatehouse.authserver.clients.authentication import AuthenticatedClient
from gatehouse.authserver.db.status_lists import revoke_token
from gatehouse.authserver.endpoints.failures import OUTAGES, refuse_form, unavailable
from gatehouse.authserver.errors import OAuthError, invalid_request
from gatehouse.authserver.form import Form, parse_form
from gatehouse.authserver.http import NO_STORE, Request, Response
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.authserver.services import Services
from gatehouse.authserver.tokens.validation import InactiveToken
from gatehouse.shared.service.audit import AuditAction, AuditEvent

_ACTION = AuditAction.TOKEN_REVOKE


def revocation(services: Services, request: Request) -> Response:
    """Answer 200 whatever the token was (RFC 7009 2.2): one that is not the client's, or no token, is left alone.

    `token_type_hint` is ignored (2.1): there are access tokens only.
    """
    form, client = Form(), None
    try:
        form = parse_form(request)
        authorization = request.headers.get("authorization")
        keys = services.keys.ring()
        client = services.authenticator.authenticate(authorization, form.parameters, keys)
        token = form.parameters.get("token")
        if token is None:
            raise invalid_request("token is missing. Send the access token that is to be revoked.")
        _revoke(services, request, client, token, keys)
    except OAuthError as error:
        proven = client.client.client_id if client else None
        return refuse_form(services, request, error, action=_ACTION, form=form, proven=proven)
    except OUTAGES as error:
        return unavailable(request, error, action=_ACTION)
    return Response(200, headers=NO_STORE)


def _revoke(services: Services, request: Request, client: AuthenticatedClient, token: str, keys: KeyRing) -> None:
    """Set the token's bit in one transaction with its audit event, or record why there was nothing to do."""
    actor = client.client.client_id
    try:
        claims, index = services.tokens.read(token, keys, client_id=actor)
    except InactiveToken as dead:
        services.audit.commit_and_wait(
            AuditEvent(_ACTION, "refused", actor=actor, jti=dead.jti, request_id=request.request_id, reason=dead.reason)
        )
        return
    event = AuditEvent(
        _ACTION, "allowed", actor=actor, object=claims.aud, jti=claims.jti, request_id=request.request_id
    )
    with services.database.write() as session:
        revoke_token(session, index.list_id, index.idx)
        session.execute(services.audit.rows.insert(event))
