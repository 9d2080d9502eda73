"""Makes the rows of audit events, without secrets or control characters, and adds them to transactions."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Table
from sqlalchemy.orm import Session

from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.protocol.redaction import mask, printable
from gatehouse.shared.service.audit.chain import LINKED, AuditRow, Chain, Chains
from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.database import BEFORE_COMMIT, placeholder


class AuditRows:
    """Makes the rows of one process, and records events in its transactions."""

    def __init__(self, table: Table, keys: Callable[[], AuditKeys], clock: Clock = system_clock) -> None:
        """`keys` is called for each batch of rows that is inserted."""
        self.table = table
        self.chains = Chains(keys)
        self.clock = clock
        self._idle: deque[Chain] = deque()
        """Chains that no transaction uses now."""

    def record(self, session: Session, *events: AuditEvent) -> None:
        """Add events to a transaction of `Database.write`, which inserts them right before it commits.

        Raises:
            TypeError: as `row` does.
            KeyError: the session is not one of `Database.write`, and would lose them.
        """
        recorded: _Recorded | None = session.info[BEFORE_COMMIT]
        if recorded is None:
            recorded = session.info[BEFORE_COMMIT] = _Recorded(self)
        recorded.rows.extend(map(self.row, events))

    @contextmanager
    def inserted(self, session: Session, rows: Sequence[AuditRow]) -> Iterator[None]:
        """Insert rows for a block that commits them. If the block raises, the outcome is unknown."""
        chain = self._idle_chain()
        try:
            linked, extended = self.chains.extend(chain, rows)
            connection = session.connection()
            connection.exec_driver_sql(self.driver_insert(connection.dialect), linked)
        except BaseException:
            # The COMMIT was not sent, so the chain ends where it did.
            self._idle.append(chain)
            raise
        yield
        self._idle.append(extended)

    def _idle_chain(self) -> Chain:
        try:
            return self._idle.pop()
        except IndexError:
            return self.chains.new()

    def driver_insert(self, dialect: Dialect) -> str:
        """Return the statement that stores the values of LINKED, in the SQL of a database driver."""
        values = ", ".join([placeholder(dialect)] * len(LINKED))
        return f"INSERT INTO {self.table.name} ({', '.join(LINKED)}) VALUES ({values})"  # noqa: S608 - constant names

    def row(self, event: AuditEvent) -> AuditRow:
        """Return the row of an event.

        Raises:
            TypeError: the detail has a value that JSON does not have.
        """
        return AuditRow(
            int(self.clock() * 1000),
            event.request_id,
            _fit(event.actor, 255),
            _fit(event.jti, 64),
            str(event.action),
            _fit(event.object, 512),
            event.outcome,
            _fit(event.reason, 1024),
            _to_json(event.detail),
        )


class _Recorded:
    """The events of one transaction, which are inserted right before it commits."""

    def __init__(self, audit: AuditRows) -> None:
        self.rows: list[AuditRow] = []
        self._audit = audit

    def __call__(self, session: Session) -> AbstractContextManager[None]:
        return self._audit.inserted(session, self.rows)


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
        if not value:
            return "{}"
        # Of names that are masked alike, the last one stays, as it does when an export reads and writes the detail.
        members = {_text_to_json(name): _to_json(item) for name, item in value.items()}
        return f"{{{', '.join([f'{name}: {item}' for name, item in members.items()])}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_to_json, value))}]"
    return json.dumps(value)


# Names of members and scopes recur as well.
@lru_cache(maxsize=1024)
def _text_to_json(text: str) -> str:
    return json.dumps(printable(mask(text)))
