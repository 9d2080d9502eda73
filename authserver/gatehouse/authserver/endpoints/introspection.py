"""`POST /introspect` (RFC 7662): a resource asks whether a token for it is live."""

from typing import Any

from gatehouse.authserver.credentials.resource_credentials import AuthenticatedResource
from gatehouse.authserver.endpoints.failures import OUTAGES, refuse_form, unavailable
from gatehouse.authserver.errors import OAuthError, invalid_request
from gatehouse.authserver.form import Form, parse_form
from gatehouse.authserver.http import NO_STORE, Request, Response, json_response
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.authserver.services import Services
from gatehouse.authserver.tokens.validation import InactiveToken
from gatehouse.shared.service.audit import AuditAction, AuditEvent

_ACTION = AuditAction.TOKEN_INTROSPECT


def introspection(services: Services, request: Request) -> Response:
    """Answer with what a live token for the asking resource says, and for any other text with `active: false`."""
    form, resource = Form(), None
    try:
        form = parse_form(request)
        authorization = request.headers.get("authorization")
        keys = services.keys.ring()
        resource = services.resource_authenticator.authenticate(authorization, form.parameters, keys)
        token = form.parameters.get("token")
        if token is None:
            raise invalid_request("token is missing. Send the access token that is to be judged.")
        answer = _introspect(services, request, resource, token, keys)
    except OAuthError as error:
        proven = resource.credential_id if resource else None
        return refuse_form(services, request, error, action=_ACTION, form=form, proven=proven)
    except OUTAGES as error:
        return unavailable(request, error, action=_ACTION)
    return json_response(answer, headers=NO_STORE)


def _introspect(
    services: Services, request: Request, resource: AuthenticatedResource, token: str, keys: KeyRing
) -> dict[str, Any]:
    jti, reason = None, None
    answer: dict[str, Any] = {"active": False}
    try:
        claims, _ = services.tokens.read(token, keys, aud=resource.resource)
        jti = claims.jti
        answer = {**claims.to_json(), "token_type": "Bearer", "active": True}
    except InactiveToken as dead:
        jti, reason = dead.jti, dead.reason
    event = AuditEvent(
        _ACTION,
        "refused" if reason else "allowed",
        actor=resource.credential_id,
        object=resource.resource,
        jti=jti,
        request_id=request.request_id,
        reason=reason,
    )
    services.audit.record(event)
    return answer
