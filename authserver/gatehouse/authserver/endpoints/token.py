"""`POST /token` (RFC 6749 3.2). The function `token` reads top to bottom as what happens to a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gatehouse.authserver.clients.authenticate import authenticate_client, claimed_client_id
from gatehouse.authserver.errors import OAuthError, invalid_request, render, temporarily_unavailable
from gatehouse.authserver.grants.client_credentials import choose_resource, choose_scope
from gatehouse.authserver.http import NO_STORE, Request, Response, json_response
from gatehouse.authserver.keys.store import NoUsableKey
from gatehouse.authserver.services import Services
from gatehouse.authserver.tokens.issue import IssuedToken
from gatehouse.shared.audit import AuditEvent, AuditUnavailable
from gatehouse.shared.scopes import format_scope

_FORM_TYPE = "application/x-www-form-urlencoded"
_MAX_PARAMETERS = 32
_ACTION = "token.issue"

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of a token request: each once, except `resource`, which RFC 8707 lets be repeated."""

    parameters: Mapping[str, str]
    resources: Sequence[str]


def token(services: Services, request: Request) -> Response:
    """Answer a token request with a token (RFC 6749 5.1) or a refusal (5.2), recorded before it leaves."""
    try:
        try:
            form = parse_form(request)
            authorization = request.headers.get("authorization")
            keys = services.keys.ring()
            client = authenticate_client(authorization, form.parameters, services.clients, keys)
            grant_type = services.authlib.find_grant(form.parameters, client)
            resource = choose_resource(client, form.resources)
            granted = choose_scope(client, resource, form.parameters)
            response, issued = services.authlib.issue_token(grant_type, granted, keys.signing_key)
            record_issued(services, request, issued)
        except OAuthError as error:
            record_refused(services, request, error)
            return render(error, request.request_id)
    except (SQLAlchemyError, NoUsableKey, AuditUnavailable) as error:
        log.error("token request cannot be judged", error=type(error).__name__)
        return render(temporarily_unavailable(type(error).__name__), request.request_id)
    return json_response(response, headers=NO_STORE)


def parse_form(request: Request) -> Form:
    """Read the form in the body, and nothing outside of it (RFC 6749 3.2, 2.3.1).

    Raises:
        OAuthError: `invalid_request`, naming what to change.
    """
    if request.query:
        raise invalid_request("Parameters belong in the body, not in the URL.")
    content_type, _, parameters = request.headers["content-type"].partition(";")
    if content_type.strip().lower() != _FORM_TYPE:
        raise invalid_request(f"Send the parameters as {_FORM_TYPE}.")
    if parameters and parameters.strip().lower().replace('"', "") != "charset=utf-8":
        raise invalid_request("The only character set is UTF-8.")
    try:
        pairs = parse_qsl(
            request.body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(request.body),
            encoding="utf-8",
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except ValueError:
        raise invalid_request(
            f"The body is no form: write name=value pairs, percent-encoded UTF-8, at most {_MAX_PARAMETERS}."
        ) from None
    if any("\x00" in name or "\x00" in value for name, value in pairs):
        raise invalid_request("A parameter holds a NUL character.")
    names = [name for name, _ in pairs if name != "resource"]
    if len(set(names)) != len(names):
        raise invalid_request("A parameter appears more than once (RFC 6749 3.2).")
    # "Parameters sent without a value MUST be treated as if they were omitted" (RFC 6749 3.2).
    present = [(name, value) for name, value in pairs if value]
    return Form(
        parameters={name: value for name, value in present if name != "resource"},
        resources=[value for name, value in present if name == "resource"],
    )


def record_issued(services: Services, request: Request, issued: IssuedToken) -> None:
    """Record an issued token. Written within 200 ms, together with others."""
    claims = issued.claims
    structlog.contextvars.bind_contextvars(client_id=claims.client_id, jti=claims.jti)
    services.audit.record(
        AuditEvent(
            _ACTION,
            "allowed",
            actor=claims.client_id,
            object=claims.aud,
            jti=claims.jti,
            request_id=request.request_id,
            detail={"scope": format_scope(claims.scope), "exp": claims.exp},
        )
    )


def record_refused(services: Services, request: Request, error: OAuthError) -> None:
    """Record a refusal and return when it is on disk."""
    claimed = _claimed_client_id(request)
    structlog.contextvars.bind_contextvars(client_id=claimed, error=error.error, reason=error.reason)
    services.audit.commit_and_wait(
        AuditEvent(
            _ACTION,
            "refused",
            actor=claimed,
            request_id=request.request_id,
            reason=error.reason,
            detail={"error": error.error},
        )
    )


def _claimed_client_id(request: Request) -> str | None:
    try:
        parameters = parse_form(request).parameters
    except OAuthError:
        parameters = {}
    return claimed_client_id(request.headers.get("authorization"), parameters)
