"""The administrator at the command line, who is recorded with every change, and the refusal of a command."""

import os
import pwd
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Table
from sqlalchemy.orm import Session

from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.keys import AuditKeyFile
from gatehouse.shared.service.audit.rows import AuditRows


class CommandRefused(Exception):
    """An administrator's command is refused. The message is for the administrator and says how to fix it."""


def operating_system_user() -> str:
    """Return the user who runs the command, from the process and not from variables that anybody can set."""
    return user_name(os.getuid())


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if it has no name, as in containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid:{uid}"


@dataclass(frozen=True, slots=True)
class Administrator:
    """The user at the command line."""

    audit: AuditRows
    clock: Clock = system_clock
    name: str = field(default_factory=operating_system_user)

    def now(self) -> int:
        """Return the time in seconds since the epoch."""
        return int(self.clock())

    @property
    def actor(self) -> str:
        """The user's name in the audit log."""
        return f"admin:{self.name}"

    def record(
        self, session: Session, action: AuditAction, object_: str, *, jti: str | None = None, **detail: Any
    ) -> None:
        """Add the audit event of a change to the transaction of the change. `detail` is JSON."""
        event = AuditEvent(action, "allowed", actor=self.actor, object=object_, jti=jti, detail=detail)
        self.audit.record(session, event)


def administrator(events: Table, audit_keys: Path) -> Administrator:
    """Return the user at the command line. The audit keys are read for the first change that is recorded."""
    return Administrator(AuditRows(events, AuditKeyFile(audit_keys).current))
