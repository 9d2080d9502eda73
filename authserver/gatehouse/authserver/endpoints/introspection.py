"""`POST /introspect` (RFC 7662): a resource asks whether a token for it is active."""

from dataclasses import dataclass
from typing import Any

from gatehouse.authserver.credentials.resource_credentials import AuthenticatedResource, ResourceAuthenticator
from gatehouse.authserver.errors import invalid_request, too_many_requests
from gatehouse.authserver.http import NO_STORE, Request, Response, json_response, parse_form
from gatehouse.authserver.keys.store import KeyRing, KeyStore
from gatehouse.authserver.tokens.validation import InactiveToken, TokenReader
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditWriter
from gatehouse.shared.service.limits import Limit

ACTION = AuditAction.TOKEN_INTROSPECT


@dataclass(frozen=True, slots=True)
class IntrospectionEndpoint:
    """Answers with the claims of an active token for the asking resource, and with `active: false` otherwise."""

    keys: KeyStore
    authenticator: ResourceAuthenticator
    tokens: TokenReader
    audit: AuditWriter
    limit: Limit
    """Of requests per resource, once it has authenticated."""
    clock: Clock

    def __call__(self, request: Request) -> Response:
        """Answer one request. A refusal is raised as OAuthError or BadRequest."""
        form = parse_form(request)
        keys, now = self.keys.ring(), self.clock()
        resource = self.authenticator.authenticate(request, form, keys, now)
        if (exceeded := request.on_loop(self.limit.hit(resource.resource))) is not None:
            raise too_many_requests(exceeded)
        token = form.parameters.get("token")
        if token is None:
            raise invalid_request("token is missing. Send the access token to introspect.")
        return json_response(self._introspect(request, resource, token, keys, now), headers=NO_STORE)

    def _introspect(
        self, request: Request, resource: AuthenticatedResource, token: str, keys: KeyRing, now: float
    ) -> dict[str, Any]:
        jti, reason = None, None
        answer: dict[str, Any] = {"active": False}
        try:
            claims, _ = self.tokens.read(token, keys, now, aud=resource.resource)
            jti = claims.jti
            answer = {**claims.to_json(), "token_type": "Bearer", "active": True}
        except InactiveToken as inactive:
            jti, reason = inactive.jti, inactive.reason
        event = AuditEvent(
            ACTION,
            "refused" if reason else "allowed",
            actor=resource.credential_id,
            object=resource.resource,
            jti=jti,
            request_id=request.request_id,
            reason=reason,
        )
        self.audit.record(event)
        return answer
