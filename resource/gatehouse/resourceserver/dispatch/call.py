"""An allowed call, and its audit events."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gatehouse.resourceserver.bearer.verified_request import Context, VerifiedRequest
from gatehouse.resourceserver.catalogue import Tool
from gatehouse.resourceserver.dispatch.progress import CallProgress
from gatehouse.shared.service.audit import AuditAction, AuditEvent

ACTION: Final = AuditAction.TOOL_CALL
"""The audit action of a call."""


@dataclass(frozen=True, slots=True)
class Call:
    """An allowed call."""

    tool: Tool
    request: VerifiedRequest
    sent: Mapping[str, Any]
    """The arguments before they are validated."""
    context: Context | None
    """The SDK's context of the request. None only for a tool that does not need it."""
    progress: CallProgress | None
    """None for a tool that is not streaming."""

    def event(self, outcome: str, reason: str | None = None, objects: Mapping[str, Any] | None = None) -> AuditEvent:
        """Return the event of the call's end. For a streaming tool, it has the progress that the call made."""
        progress = {"done": self.progress.done, "of": self.progress.total} if self.progress is not None else {}
        return self.request.event(ACTION, self.tool.name, outcome, reason, {**progress, **(objects or {})})

    def event_of_transaction(self, detail: Mapping[str, Any]) -> AuditEvent:
        """Return the event that commits with one transaction of a streaming tool."""
        return self.request.event(ACTION, self.tool.name, "allowed", None, detail)
