"""How a request ends that no endpoint answers: in one way, whichever endpoint it is."""

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gatehouse.authserver.clients.request_credentials import claimed_actor
from gatehouse.authserver.errors import OAuthError, render, temporarily_unavailable
from gatehouse.authserver.form import Form
from gatehouse.authserver.http import Request, Response
from gatehouse.authserver.keys.sealed_keys import NoUsableKey
from gatehouse.authserver.refusals import refuse
from gatehouse.authserver.services import Services
from gatehouse.shared.service.audit import AuditAction
from gatehouse.shared.service.audit_writer import AuditUnavailable

OUTAGES = (SQLAlchemyError, NoUsableKey, AuditUnavailable)
"""While one of these lasts, nothing can be said of a request, neither yes nor no."""

log = structlog.stdlib.get_logger(__name__)


def unavailable(request: Request, error: Exception, *, action: AuditAction | None = None) -> Response:
    """Return 503 for an outage; it is logged where the request was to be recorded under an `action`."""
    name = type(error).__name__
    if action is not None:
        log.error("a request cannot be judged", action=action, error=name)
    return render(temporarily_unavailable(name), request.request_id)


def refuse_form(
    services: Services,
    request: Request,
    error: OAuthError,
    *,
    action: AuditAction,
    form: Form,
    proven: str | None,
    target: str | None = None,
) -> Response:
    """Refuse a request that came with a form and credentials; recorded for who was `proven`, or claimed."""
    actor = claimed_actor(proven, request.headers.get("authorization"), form.parameters)
    return refuse(services.audit, request.request_id, error, action=action, actor=actor, target=target)
