"""What the worker answers and records for a request that it refuses before an application sees it.

Such a request is malformed, too large or too slow. The response is constant: what was sent may contain a token.
"""

import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

import structlog

from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable
from gatehouse.shared.service.requests import REQUEST_ID_HEADER, SECURITY_HEADERS, outcome_of

RECORDED_PER_SECOND: Final = 10
"""Refusals of one process and second that get a log line and an audit event each. The rest are counted in one more.

Anyone can cause these refusals with a few bytes, so without a limit they would fill the disk.
"""

_UNREAD: Final = "(unread)"
"""The object of the audit event: no path was read, and what was sent in its place could be a secret."""

_DESCRIPTIONS: Final = {
    400: "The request is not valid HTTP/1.1.",
    408: "The request did not arrive in time.",
    414: "The request line is too long.",
    431: "The request has too many header fields, or one of them is too large.",
    500: "The server failed. Report the request id.",
    501: "The server does not support the transfer coding.",
}

log = structlog.stdlib.get_logger(__name__)


class EventRecorder(Protocol):
    """The hook of an application that the worker serves: where the worker's refusals are recorded."""

    def record(self, event: AuditEvent) -> None:
        """Queue an audit event. Raises AuditUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class TransportRefusal:
    """A request that no application saw."""

    status: int
    reason: str
    """A constant text for the operator, such as the name of the parser's error. Never what was sent."""
    request_id: str

    def response(self) -> bytes:
        """Return the whole response, which closes the connection."""
        error = "invalid_request" if self.status < 500 else "server_error"
        content = {"error": error, "error_description": _DESCRIPTIONS[self.status], "request_id": self.request_id}
        body = json.dumps(content).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            **SECURITY_HEADERS,
            REQUEST_ID_HEADER: self.request_id,
            "Connection": "close",
        }
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


class TransportRefusals:
    """Records the refusals of one process, at most RECORDED_PER_SECOND of them one by one."""

    def __init__(self, recorder: EventRecorder, monotonic: Clock = time.monotonic) -> None:
        self._recorder = recorder
        self._monotonic = monotonic
        self._second = monotonic()
        self._recorded = 0
        self._suppressed = 0

    def record(self, refusal: TransportRefusal) -> None:
        """Record one refusal, or count it. The event is on disk within the interval of the audit writer."""
        self.flush()
        if self._recorded >= RECORDED_PER_SECOND:
            self._suppressed += 1
            return
        self._recorded += 1
        log.info(
            "request refused before it was read",
            status=refusal.status,
            outcome=outcome_of(refusal.status),
            reason=refusal.reason,
            request_id=refusal.request_id,
        )
        self._write(
            AuditEvent(
                AuditAction.HTTP_REQUEST,
                outcome_of(refusal.status),
                object=_UNREAD,
                request_id=refusal.request_id,
                reason=refusal.reason,
                detail={"status": refusal.status},
            )
        )

    def flush(self) -> None:
        """Record how many refusals were only counted, if their second has passed. Called once a second."""
        now = self._monotonic()
        if now - self._second < 1:
            return
        suppressed, self._suppressed = self._suppressed, 0
        self._second, self._recorded = now, 0
        if suppressed:
            reason = "further requests were refused before they were read"
            log.warning(reason, suppressed=suppressed)
            detail = {"suppressed": suppressed}
            self._write(AuditEvent(AuditAction.HTTP_REQUEST, "refused", object=_UNREAD, reason=reason, detail=detail))

    def _write(self, event: AuditEvent) -> None:
        try:
            self._recorder.record(event)
        except AuditUnavailable as error:
            log.error("a refusal cannot be recorded", error=str(error), request_id=event.request_id)
