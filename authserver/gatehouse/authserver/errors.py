"""Refusals: their public text, their private reason for the audit log, and the response rendered from them."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import structlog

from gatehouse.authserver.http import NO_STORE, Response, json_response
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable
from gatehouse.shared.service.limits import Exceeded
from gatehouse.shared.service.refusals import RefusalRecorder
from gatehouse.shared.service.requests import RETRY_AFTER, UNAVAILABLE, add_to_log

log = structlog.stdlib.get_logger(__name__)


ERRORS = (
    *("invalid_request", "invalid_client", "invalid_grant", "invalid_scope", "invalid_target"),
    *("unsupported_grant_type", "unsupported_response_type", "temporarily_unavailable", "server_error"),
)
"""The error codes of this server."""


class AuthFailure(StrEnum):
    """Why the authentication of a client or a resource failed. The reason in the audit log says more."""

    NONE_SENT = "none_sent"
    """The request has no credential."""
    MALFORMED = "malformed"
    UNKNOWN_CLIENT = "unknown_client"
    DISABLED_CLIENT = "disabled_client"
    WRONG_METHOD = "wrong_method"
    """The method is not the registered one."""
    WRONG_SECRET = "wrong_secret"  # noqa: S105 - a name
    INACTIVE_SECRET = "inactive_secret"  # noqa: S105 - a name
    INACTIVE_KEY = "inactive_key"
    ASSERTION_MALFORMED = "assertion_malformed"
    ASSERTION_SIGNATURE = "assertion_signature"
    """No key of the client signed it."""
    ASSERTION_CLAIMS = "assertion_claims"
    """It names another party, or its times or its jti are not accepted."""
    ASSERTION_REPLAYED = "assertion_replayed"
    UNTRUSTED_ISSUER = "untrusted_issuer"
    """No trusted issuer has the `iss` of the platform token."""
    UNTRUSTED_WORKLOAD = "untrusted_workload"
    """The platform token is valid, and no trust rule maps it to one client."""


class OAuthError(Exception):
    """A refusal (RFC 6749 5.2).

    `description` is public: constant text that says how to fix the request and repeats no part of it. `reason` and
    `remediation` are for the operator and appear in the log and the audit log only. `remediation` is the command that
    would allow the request, or what the client has to change where `description` may not say so. `exceeded` is the
    limit that refused it, if one did.
    """

    def __init__(
        self,
        error: str,
        description: str,
        *,
        reason: str | None = None,
        remediation: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
        cause: AuthFailure | None = None,
        exceeded: Exceeded | None = None,
    ) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.reason = reason or description
        self.remediation = remediation
        self.status = status
        self.headers = dict(headers or {})
        self.cause = cause
        self.exceeded = exceeded


def invalid_request(description: str, *, status: int = 400) -> OAuthError:
    """Return the refusal of a malformed request (RFC 6749 5.2)."""
    return OAuthError("invalid_request", description, status=status)


def invalid_client(cause: AuthFailure, reason: str, remediation: str) -> OAuthError:
    """Return the refusal of a failed client authentication (RFC 6749 5.2).

    The response is the same for every cause and every method: it always asks for Basic, so that it does not reveal
    which method the client is registered for.
    """
    return OAuthError(
        "invalid_client",
        "Client authentication failed. Check the client_id, the credential and the client's registered method.",
        reason=reason,
        remediation=remediation,
        status=401,
        headers={"WWW-Authenticate": 'Basic realm="gatehouse", charset="UTF-8"'},
        cause=cause,
    )


def invalid_grant(failed: OAuthError) -> OAuthError:
    """Return the refusal of an assertion that is the grant (RFC 7521 4.1), with the reason of a failed authentication.

    The response is the same for every reason.
    """
    return OAuthError(
        "invalid_grant",
        "The assertion is not accepted. Check its issuer, audience and lifetime, and that this workload is registered.",
        reason=failed.reason,
        remediation=failed.remediation,
        cause=failed.cause,
    )


def temporarily_unavailable(
    reason: str, remediation: str | None = None, cause: AuthFailure | None = None
) -> OAuthError:
    """Return the refusal of a request that cannot be decided during an outage. The client may try again.

    With a `cause`, the request counts as a failed authentication.
    """
    return OAuthError(
        "temporarily_unavailable",
        UNAVAILABLE,
        reason=reason,
        remediation=remediation,
        cause=cause,
        status=503,
        headers=RETRY_AFTER,
    )


def too_many_requests(exceeded: Exceeded, instead_of: OAuthError | None = None) -> OAuthError:
    """Return the refusal of a request past a limit. `instead_of` is the refusal without the limit.

    RFC 6749 has no error code for it. `temporarily_unavailable` is the one for an overload in its section 4.1.2.1.
    """
    without = f"; without it: {instead_of.reason}" if instead_of is not None else ""
    return OAuthError(
        "temporarily_unavailable",
        f"Too many requests. Wait {exceeded.wait} s, then try again.",
        reason=f"exceeds the limit {exceeded.limit} of {exceeded.allowed}{without}",
        remediation=f"Let the client send fewer requests, or raise AUTHSERVER_LIMIT_{exceeded.limit.upper()}.",
        status=429,
        headers={"Retry-After": str(exceeded.wait)},
        cause=instead_of.cause if instead_of is not None else None,
        exceeded=exceeded,
    )


def render(error: OAuthError, request_id: str) -> Response:
    """Return the response to a refused request."""
    content = {"error": error.error, "error_description": error.description, "request_id": request_id}
    response = json_response(content, error.status, {**NO_STORE, **error.headers})
    return response._replace(error=error.error, cause=error.cause or "")


async def refuse(
    refusals: RefusalRecorder,
    request_id: str,
    error: OAuthError,
    *,
    action: AuditAction = AuditAction.HTTP_REQUEST,
    actor: str | None = None,
    target: str | None = None,
    external: Mapping[str, str] = MappingProxyType({}),
    address: str = "",
) -> Response:
    """Record a refusal, then return its response; return 503 if it cannot be recorded.

    The event is on disk before the response leaves, so that the request id in it always leads to the reason. Of the
    refusals past a limit, the audit log has the first one and the number of the others.
    """
    add_to_log(client_id=actor, error=error.error, reason=error.reason)
    event = AuditEvent(
        action,
        "refused" if error.status < 500 else "failed",
        actor=actor,
        object=target,
        request_id=request_id,
        reason=error.reason,
        detail={
            "error": error.error,
            **({"remediation": error.remediation} if error.remediation else {}),
            **external,
        },
    )
    try:
        await refusals.record(event, error.exceeded, address)
    except AuditUnavailable as unavailable:
        log.error("a refusal cannot be recorded", error=str(unavailable))
        return render(temporarily_unavailable(str(unavailable)), request_id)
    return render(error, request_id)


def report_outage(request_id: str, error: Exception, action: AuditAction | None = None) -> Response:
    """Return 503 for an outage. It is logged if the request would have been recorded under an `action`."""
    name = type(error).__name__
    if action is not None:
        log.error("a request cannot be decided", action=action, error=name)
    return render(temporarily_unavailable(name), request_id)
