"""`POST /token` (RFC 6749 3.2). The function `token` reads top to bottom as what happens to a request."""

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gatehouse.authserver.clients.authentication import AuthenticatedClient
from gatehouse.authserver.endpoints.failures import OUTAGES, refuse_form, unavailable
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.form import Form, parse_form
from gatehouse.authserver.grants.client_credentials import (
    GrantedRequest,
    ScopeNotGranted,
    choose_resource,
    choose_scope,
)
from gatehouse.authserver.grants.explanation import explain
from gatehouse.authserver.http import NO_STORE, Request, Response, json_response
from gatehouse.authserver.services import Services
from gatehouse.authserver.tokens.issue import IssuedToken
from gatehouse.shared.protocol.resource_identifiers import InvalidResourceIdentifier, parse_resource_identifier
from gatehouse.shared.protocol.scopes import cut_scope, format_scope
from gatehouse.shared.service.audit import AuditAction, AuditEvent

_ACTION = AuditAction.TOKEN_ISSUE

log = structlog.stdlib.get_logger(__name__)


def token(services: Services, request: Request) -> Response:
    """Answer a token request with a token (RFC 6749 5.1) or a refusal (5.2), recorded before it leaves."""
    form, client = Form(), None
    try:
        form = parse_form(request)
        authorization = request.headers.get("authorization")
        keys = services.keys.ring()
        client = services.authenticator.authenticate(authorization, form.parameters, keys)
        grant_type = services.authlib.find_grant(form.parameters)
        resource = choose_resource(client, form.resources)
        granted = choose_scope(client, resource, form.parameters)
        response, issued = services.authlib.issue_token(grant_type, granted, keys.signing_key)
        record_issued(services, request, granted, issued)
    except OAuthError as error:
        return _refuse(services, request, error, form, client)
    except OUTAGES as error:
        return unavailable(request, error, action=_ACTION)
    return json_response(response, headers=NO_STORE)


def _refuse(
    services: Services, request: Request, error: OAuthError, form: Form, client: AuthenticatedClient | None
) -> Response:
    if isinstance(error, ScopeNotGranted):
        try:
            with services.database.read() as session:
                error = explain(session, error)
        except SQLAlchemyError:
            log.warning("why a grant is missing cannot be looked up")
    proven = client.client.client_id if client else None
    return refuse_form(services, request, error, action=_ACTION, form=form, proven=proven, target=_target(form))


def record_issued(services: Services, request: Request, granted: GrantedRequest, issued: IssuedToken) -> None:
    """Record an issued token. Written within 200 ms, together with others."""
    claims = issued.claims
    scope_not_granted = {"scope_not_granted": cut_scope(granted.scope_not_granted)} if granted.scope_not_granted else {}
    structlog.contextvars.bind_contextvars(client_id=claims.client_id, jti=claims.jti)
    services.audit.record(
        AuditEvent(
            _ACTION,
            "allowed",
            actor=claims.client_id,
            object=claims.aud,
            jti=claims.jti,
            request_id=request.request_id,
            detail={"scope": format_scope(claims.scope), "exp": claims.exp, **scope_not_granted},
        )
    )


def _target(form: Form) -> str | None:
    """Return the one resource that a request named; nothing of a text that is no identifier is kept."""
    if len(form.resources) != 1:
        return None
    try:
        return parse_resource_identifier(form.resources[0])
    except InvalidResourceIdentifier:
        return None
