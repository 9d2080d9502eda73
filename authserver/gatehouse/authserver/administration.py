"""Who administers, and how a change is recorded with it."""

import getpass
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from gatehouse.authserver.store.models import audit_event
from gatehouse.shared.audit import AuditEvent, AuditWriter
from gatehouse.shared.clock import Clock, system_clock

MAX_NAME = 128
"""Characters of the name of a client or resource."""


class Refused(Exception):
    """The change was not made. The message is for the admin and names the mend."""


def check_name(noun: str, name: str) -> None:
    """Check what people will call a client or a resource. Raises Refused."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise Refused(f"A {noun} name is 1 to {MAX_NAME} printable characters.")


def _operating_system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@dataclass(frozen=True, slots=True)
class Administrator:
    """The person at the command line."""

    audit: AuditWriter
    clock: Clock = system_clock
    name: str = field(default_factory=_operating_system_user)

    def now(self) -> int:
        """Return the time in seconds since the epoch."""
        return int(self.clock())

    def record(self, session: Session, action: str, object_: str, **detail: Any) -> None:
        """Add the audit event of a change to the change's own transaction."""
        event = AuditEvent(action, "allowed", actor=f"admin:{self.name}", object=object_, detail=detail)
        session.execute(audit_event.insert(), [self.audit.values(event)])
