"""Makes the rows of audit events: numbered by their writer, and without secrets or control characters."""

import itertools
import json
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Dialect, Insert, Table, TableClause, column, insert

from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.protocol.redaction import mask, printable
from gatehouse.shared.service.audit import AuditEvent
from gatehouse.shared.service.database import placeholder


class AuditRow(NamedTuple):
    """The values of one row as a database driver stores them."""

    time: int
    """Milliseconds since the epoch."""
    writer: str
    sequence: int
    request_id: str | None
    actor: str | None
    jti: str | None
    action: str
    object: str | None
    outcome: str
    reason: str | None
    detail: str
    """JSON."""


class AuditRows:
    """Builds the rows of one process: adds the writer, its sequence number, and the time."""

    def __init__(self, table: Table, clock: Clock = system_clock) -> None:
        self.table = table
        self.clock = clock
        # Without types, because the values of a row need no conversion.
        self._target = TableClause(table.name, *map(column, AuditRow._fields))
        self._writer = f"w_{secrets.token_hex(8)}"
        self._sequence = itertools.count(1)

    def insert(self, *events: AuditEvent) -> Insert:
        """Return the statement that records events in the caller's transaction. Raises TypeError as `row` does."""
        return insert(self._target).values([self.row(event)._asdict() for event in events])

    def driver_insert(self, dialect: Dialect) -> str:
        """Return the statement that stores an AuditRow, in the SQL of a database driver."""
        columns = AuditRow._fields
        values = ", ".join([placeholder(dialect)] * len(columns))
        return f"INSERT INTO {self.table.name} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608 - constant names

    def row(self, event: AuditEvent) -> AuditRow:
        """Return the row of an event, with the next sequence number.

        Raises:
            TypeError: the detail has a value that JSON does not have.
        """
        # First, because a number without a row would look like a lost event.
        detail = _to_json(event.detail)
        return AuditRow(
            int(self.clock() * 1000),
            self._writer,
            next(self._sequence),
            event.request_id,
            _fit(event.actor, 255),
            _fit(event.jti, 64),
            str(event.action),
            _fit(event.object, 512),
            event.outcome,
            _fit(event.reason, 1024),
            detail,
        )


def _fit(text: str | None, length: int) -> str | None:
    """Cut a text to its column's length, masked and printable, so that no event can forge a line of a report."""
    # Cut before it is remembered: a caller may name a tool of a megabyte.
    return None if text is None else _cleaned(text[:length])[:length]


# Most events name a client, a token or a tool that an earlier event has named.
@lru_cache(maxsize=1024)
def _cleaned(text: str) -> str:
    return printable(mask(text))


def _to_json(value: Any) -> str:
    """Return JSON whose strings, including the names of members, are masked and printable."""
    if isinstance(value, str):
        return _text_to_json(value)
    if type(value) is int:
        return str(value)
    if isinstance(value, Mapping):
        members = [f"{_text_to_json(name)}: {_to_json(item)}" for name, item in value.items()]
        return f"{{{', '.join(members)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_to_json, value))}]"
    return json.dumps(value)


# Names of members and scopes recur as well.
@lru_cache(maxsize=1024)
def _text_to_json(text: str) -> str:
    return json.dumps(printable(mask(text)))
