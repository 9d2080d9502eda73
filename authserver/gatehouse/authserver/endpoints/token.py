"""`POST /token` (RFC 6749 3.2)."""

from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gatehouse.authserver.authlib_server import AuthlibServer
from gatehouse.authserver.clients.authentication import (
    ClientAuthenticator,
    Credentials,
    claim_workload,
    read_credentials,
)
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.errors import OAuthError, invalid_grant
from gatehouse.authserver.grants import jwt_bearer
from gatehouse.authserver.grants.client_credentials import (
    GrantedRequest,
    choose_resource,
    choose_scope,
    read_resource,
)
from gatehouse.authserver.grants.entitlements import ScopeNotGranted, explain
from gatehouse.authserver.http import NO_STORE, Form, Request, Response, json_response, parse_form
from gatehouse.authserver.keys.store import KeyStore
from gatehouse.authserver.resources.registry import declared_scopes, list_identifiers
from gatehouse.authserver.tokens.issue import IssuedToken, StatusIndexAllocator, TokenIssuer
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.scopes import cut_scope
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditWriter
from gatehouse.shared.service.limits import Limit
from gatehouse.shared.service.requests import add_to_log

ACTION = AuditAction.TOKEN_ISSUE

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TokenEndpoint:
    """Answers token requests with a token (RFC 6749 5.1). A refusal is raised as OAuthError or BadRequest."""

    database: Database
    keys: KeyStore
    authenticator: ClientAuthenticator
    authlib: AuthlibServer
    indices: StatusIndexAllocator
    issuer: TokenIssuer
    audit: AuditWriter
    limit: Limit
    """Of requests per client, once it has authenticated."""
    clock: Clock

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        form = parse_form(request)
        request.grant_type = form.parameters.get("grant_type", "")
        requested = read_resource(form.resources)
        request.target = requested.identifier
        credentials = _read_credentials(request, form)
        keys, now = await request.load(self.keys.ring), self.clock()
        client = await self.authenticator.authenticate_async(request, credentials, keys, now, self.limit)
        self.authlib.find_grant(form.parameters)
        try:
            resource = choose_resource(client, requested)
            granted = choose_scope(client, resource, form.parameters)
        except ScopeNotGranted as refusal:
            raise await request.in_thread(self._explain, refusal) from None
        issued = await self._issue(request, granted, keys.signing_key, now)
        self._record(request, granted, issued)
        return _respond(issued)

    async def _issue(self, request: Request, granted: GrantedRequest, key: SigningKey, now: float) -> IssuedToken:
        try:
            index = await self.indices.allocate(granted.client, now)
        except OAuthError as refusal:
            # The client was disabled since it authenticated, or since its assertion was accepted.
            if request.grant_type != jwt_bearer.GRANT_TYPE:
                raise
            raise invalid_grant(refusal) from None
        if key.is_slow:
            return await request.in_thread(self.issuer.issue, granted, index, key, now)
        return self.issuer.issue(granted, index, key, now)

    def _explain(self, refusal: ScopeNotGranted) -> OAuthError:
        """Return the refusal with the reason and remediation that the registered resources allow."""
        try:
            with self.database.read() as session:
                identifiers = list_identifiers(session)
                declared = declared_scopes(session, refusal.resource)
        except SQLAlchemyError:
            log.warning("the registered resources cannot be read to explain a refusal")
            return refusal
        return explain(refusal, identifiers, declared)

    def _record(self, request: Request, granted: GrantedRequest, issued: IssuedToken) -> None:
        """Record an issued token. The event is written with others, at most 100 ms later."""
        claims = issued.claims
        detail = {"scope": issued.scope, "exp": claims.exp, "kid": issued.kid, **request.external}
        if granted.scope_not_granted:
            detail["scope_not_granted"] = cut_scope(granted.scope_not_granted)
        add_to_log(client_id=claims.client_id, jti=claims.jti)
        self.audit.record(
            AuditEvent(
                ACTION,
                "allowed",
                actor=claims.client_id,
                object=claims.aud,
                jti=claims.jti,
                request_id=request.request_id,
                detail=detail,
            )
        )


def _read_credentials(request: Request, form: Form) -> Credentials:
    """Read what authenticates the client. Raises OAuthError."""
    if request.grant_type != jwt_bearer.GRANT_TYPE:
        return read_credentials(request, form)
    credentials = jwt_bearer.read_grant_assertion(request, form)
    claim_workload(request, credentials)
    return credentials


def _respond(issued: IssuedToken) -> Response:
    content = {
        "token_type": "Bearer",
        "access_token": issued.access_token,
        "expires_in": issued.claims.exp - issued.claims.iat,
        "scope": issued.scope,
    }
    return json_response(content, headers=NO_STORE)
