"""A refusal at the gate: what the client, the operator and the audit log learn of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import structlog

from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.bearer.mcp_request import Message
from gatehouse.resourceserver.http import Message as ASGIMessage
from gatehouse.resourceserver.http import Response, Send, json_response
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.limits import Exceeded
from gatehouse.shared.service.metrics import OTHER
from gatehouse.shared.service.refusals import RefusalRecorder
from gatehouse.shared.service.requests import RETRY_AFTER, UNAVAILABLE, add_to_log

log = structlog.stdlib.get_logger(__name__)


class Cause(StrEnum):
    """Why a request is refused, for metrics. The reason in the audit log says more."""

    NO_TOKEN = "no_token"  # noqa: S105 - a name
    MALFORMED_TOKEN = "malformed_token"  # noqa: S105 - a name
    UNKNOWN_KEY = "unknown_key"
    SIGNATURE = "signature"
    CLAIMS = "claims"
    """A claim is missing, malformed or not accepted here."""
    ISSUER = "issuer"
    AUDIENCE = "audience"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    REVOKED = "revoked"
    STATUS = "status"
    """The token refers to no status that the issuer has."""
    INSUFFICIENT_SCOPE = "insufficient_scope"
    UNKNOWN_TOOL = "unknown_tool"
    WITHHELD_TOOL = "withheld_tool"
    UNKNOWN_RESOURCE = "unknown_resource"
    UNKNOWN_METHOD = "unknown_method"
    MALFORMED_MESSAGE = "malformed_message"
    HEADERS = "headers"
    TOO_LARGE = "too_large"
    LIMIT_CALLS = "limit_calls"
    LIMIT_TOOL_CALLS = "limit_tool_calls"
    LIMIT_CONCURRENT_CALLS = "limit_concurrent_calls"
    KEYS_UNAVAILABLE = "keys_unavailable"
    STATUS_UNAVAILABLE = "status_unavailable"
    AUDIT_UNAVAILABLE = "audit_unavailable"


class Refused(Exception):
    """The request is refused. `cause`, `reason` and `remediation` are for the operator, everything else is public.

    `exceeded` is the limit that refused it, if one did.
    """

    def __init__(
        self,
        cause: Cause,
        status: int,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        remediation: str | None = None,
        exceeded: Exceeded | None = None,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.status = status
        self.code = code
        self.message = message
        self.reason = reason or message
        self.headers = headers or {}
        self.data = data or {}
        self.remediation = remediation
        self.exceeded = exceeded


@dataclass(slots=True)
class Received:
    """What the gate knows of a request so far. A refusal is recorded and answered with it."""

    request_id: str
    message: Message | None = None
    claims: AccessClaims | None = None
    """The claims of the token, if the issuer signed it. The token may still be invalid here."""
    rpc_id: json_rpc.RequestId = None
    version: str = ""
    """The protocol version, once the headers are accepted."""
    admitted: bool = False
    """Whether the gate let the request pass."""
    refused: Refused | None = None
    """The refusal that was answered."""
    error: str | int = ""
    """What failed after the gate: the code of a JSON-RPC error, `tool_error`, or empty. For metrics."""
    recorded: bool = False
    """Whether dispatch has recorded the error that it answers with."""
    address: str = ""
    """The source address; known only for a request that exceeds a limit."""

    def fail(self, error: str | int) -> None:
        """Note what failed after the gate."""
        self.error = error

    def record(self) -> None:
        """Note that the error has an audit event."""
        self.recorded = True


def unavailable(cause: Cause, reason: str, remediation: str | None = None) -> Refused:
    """Return the 503 for a request that cannot be decided or recorded now."""
    return Refused(
        cause, 503, json_rpc.UNAVAILABLE, UNAVAILABLE, reason=reason, headers=RETRY_AFTER, remediation=remediation
    )


def too_many_requests(exceeded: Exceeded) -> Refused:
    """Return the 429 for a request past a limit. The text tells an agent to wait."""
    setting = f"limit_{exceeded.limit.partition(':')[0]}"
    return Refused(
        Cause(setting),
        429,
        json_rpc.TOO_MANY_REQUESTS,
        f"Too many calls: this one was not executed. Wait {exceeded.wait} s, then repeat it.",
        reason=f"exceeds the limit {exceeded.limit} of {exceeded.allowed}",
        headers={"Retry-After": str(exceeded.wait)},
        remediation=f"Let the client call less often, or raise RESOURCESERVER_{setting.upper()} or the tool's limit.",
        exceeded=exceeded,
    )


async def refuse(refusals: RefusalRecorder, refused: Refused, received: Received) -> Response:
    """Record a refusal and return its response, or a 503 if the audit event cannot be written to disk."""
    add_to_log(reason=refused.reason)
    event = _event(refused.reason, refused.status, received, refused.remediation)
    try:
        await refusals.record(event, refused.exceeded, received.address)
    except AuditUnavailable as error:
        refused = _unrecorded(error)
    return _respond(refused, received)


def recording(audit: AuditWriter, received: Received, send: Send) -> Send:
    """Return a send function that records what the SDK refuses, such as a header that contradicts the body.

    If the audit event cannot be written to disk, it sends a 503 instead.
    """
    replaced = False

    async def send_recorded(message: ASGIMessage) -> None:
        nonlocal replaced
        if message["type"] == "http.response.start" and message["status"] >= 400 and not received.recorded:
            received.error = received.error or OTHER
            try:
                await audit.commit_async(_event("refused by the protocol layer", message["status"], received))
            except AuditUnavailable as error:
                replaced = True
                response = _respond(_unrecorded(error), received)
                headers = [*response.headers, (b"content-length", str(len(response.body)).encode())]
                await send({"type": "http.response.start", "status": response.status, "headers": headers})
                await send({"type": "http.response.body", "body": response.body})
        if not replaced:
            await send(message)

    return send_recorded


def _respond(refused: Refused, received: Received) -> Response:
    received.refused = refused
    data = {**refused.data, "request_id": received.request_id}
    return json_response(
        json_rpc.error_body(refused.code, refused.message, received.rpc_id, data),
        refused.status,
        {"Cache-Control": "no-store", **refused.headers},
    )


def _event(reason: str, status: int, received: Received, remediation: str | None = None) -> AuditEvent:
    message, claims = received.message, received.claims
    action, object_ = _attempted(message)
    return AuditEvent(
        action,
        "refused" if status < 500 or message is None or claims is None else "failed",
        actor=claims.client_id if claims is not None else None,
        object=object_,
        jti=claims.jti if claims is not None else None,
        request_id=received.request_id,
        reason=reason,
        detail={"status": status, **({"remediation": remediation} if remediation else {})},
    )


def _attempted(message: Message | None) -> tuple[AuditAction, str | None]:
    """Return the audit action and object of a message."""
    if message is None:
        return AuditAction.MCP_REQUEST, None
    if message.tool_name is not None:
        return AuditAction.TOOL_CALL, message.tool_name
    if message.resource_uri is not None:
        return AuditAction.RESOURCE_READ, message.resource_uri
    return AuditAction.MCP_REQUEST, message.method


def _unrecorded(error: AuditUnavailable) -> Refused:
    log.error("a refusal cannot be recorded", error=str(error))
    return unavailable(Cause.AUDIT_UNAVAILABLE, str(error))
