"""Makes the rows of audit events: numbered by their writer, and without secrets or control characters."""

import itertools
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Insert, Table, insert

from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.protocol.redaction import mask, printable
from gatehouse.shared.service.audit import AuditEvent


class AuditRows:
    """Builds the rows of one process: adds the writer, its sequence number, and the time."""

    def __init__(self, table: Table, clock: Clock = system_clock) -> None:
        self.table = table
        self.clock = clock
        self._writer = f"w_{secrets.token_hex(8)}"
        self._sequence = itertools.count(1)

    def insert(self, event: AuditEvent) -> Insert:
        """Return the statement that records an event in the caller's transaction."""
        return insert(self.table).values(self.values(event))

    def values(self, event: AuditEvent) -> dict[str, Any]:
        """Return the row of an event, with the next sequence number."""
        return {
            "time": int(self.clock() * 1000),
            "writer": self._writer,
            "sequence": next(self._sequence),
            "request_id": event.request_id,
            "actor": _fit(event.actor, 255),
            "jti": _fit(event.jti, 64),
            "action": str(event.action),
            "object": _fit(event.object, 512),
            "outcome": event.outcome,
            "reason": _fit(event.reason, 1024),
            "detail": _safe(event.detail),
        }


def _fit(text: str | None, length: int) -> str | None:
    """Cut a text to its column's length, masked and printable, so that no event can forge a line of a report."""
    return None if text is None else _cleaned(text[:length])[:length]


# Most events name a client, a token or a tool that an earlier event has named.
@lru_cache(maxsize=1024)
def _cleaned(text: str) -> str:
    return printable(mask(text))


def _safe(value: Any) -> Any:
    """Return JSON whose strings, including the names of members, are masked and printable."""
    if isinstance(value, str):
        return printable(mask(value))
    if isinstance(value, Mapping):
        return {_safe(name): _safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    return value
