"""Every refusal is recorded before it leaves, so that its request id leads an operator to the reason."""

import structlog

from gatehouse.authserver.errors import OAuthError, render, temporarily_unavailable
from gatehouse.authserver.http import Response
from gatehouse.shared.service.audit import AuditAction, AuditEvent
from gatehouse.shared.service.audit_writer import AuditUnavailable, AuditWriter

log = structlog.stdlib.get_logger(__name__)


def refuse(
    audit: AuditWriter,
    request_id: str,
    error: OAuthError,
    *,
    action: AuditAction = AuditAction.HTTP_REQUEST,
    actor: str | None = None,
    target: str | None = None,
) -> Response:
    """Return the response to a refused request when the refusal is on disk; 503 where it cannot be recorded."""
    structlog.contextvars.bind_contextvars(client_id=actor, error=error.error, reason=error.reason)
    event = AuditEvent(
        action,
        "refused" if error.status < 500 else "failed",
        actor=actor,
        object=target,
        request_id=request_id,
        reason=error.reason,
        detail={"error": error.error, **({"remediation": error.remediation} if error.remediation else {})},
    )
    try:
        audit.commit_and_wait(event)
    except AuditUnavailable as unavailable:
        log.error("a refusal cannot be recorded", error=str(unavailable))
        return render(temporarily_unavailable(str(unavailable)), request_id)
    return render(error, request_id)
