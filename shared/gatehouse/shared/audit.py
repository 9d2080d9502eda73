"""The audit trail of both servers: one table, one event, one writer.

An event is recorded in one of three ways, each with its own promise:

* `AuditWriter.values` gives the row to insert in the caller's own transaction: the change and its event commit
  together or not at all. For changes.
* `AuditWriter.commit` returns a future that is done when the row is on disk. For refusals: recorded before the
  answer leaves.
* `AuditWriter.record` returns at once; the row is written with others within 200 ms. For tokens issued and calls
  that only read. A crash loses at most that interval.

Nothing is ever dropped silently: when the database does not take events and the queue is full, the writer refuses,
and the request is refused with it.
"""

import itertools
import logging
import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    or_,
    select,
)
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.types import JSON

from gatehouse.shared.clock import Clock, system_clock
from gatehouse.shared.redaction import mask, printable

BATCH_INTERVAL = 0.2
"""Seconds that a recorded event may wait for others."""

_CAPACITY = 10_000
_COMMIT_TIMEOUT = 10
"""Seconds; longer than the wait for SQLite's write lock."""

_OUTAGE = (OperationalError, InterfaceError, PoolTimeout)
"""The database is away, locked or out of connections: another try may succeed."""

log = logging.getLogger(__name__)


class AuditUnavailable(Exception):
    """The event cannot be recorded, so what it tells of must not happen."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that somebody did, or was refused. Never holds a token, secret, assertion or tool argument."""

    action: str
    """What was attempted: `token.issue`, `tool.call`, `client.create`, ..."""
    outcome: str
    """`allowed`, `refused`, or `failed` (allowed, but without the wanted result)."""
    actor: str | None = None
    """The client_id, or `admin:NAME` for the command line. For a refused authentication: the client_id claimed."""
    object: str | None = None
    """What it was done to: a client_id, a tool, a resource."""
    jti: str | None = None
    """The token's identifier: joins the two servers' trails."""
    request_id: str | None = None
    reason: str | None = None
    """Why it was refused, in words for the operator."""
    detail: Mapping[str, Any] = field(default_factory=dict)


def audit_table(metadata: MetaData) -> Table:
    """Declare the audit table on a server's metadata."""
    return Table(
        "audit_event",
        metadata,
        # SQLite numbers only plain INTEGER keys by itself.
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("time", BigInteger, nullable=False, index=True, comment="milliseconds since the epoch"),
        Column("writer", String(32), nullable=False, comment="the process that wrote the row"),
        Column("sequence", BigInteger, nullable=False, comment="counts the rows of one writer"),
        Column("previous", String(64), comment="reserved: authentication code of the writer's previous row"),
        Column("request_id", String(64), index=True),
        Column("actor", String(255), index=True),
        Column("jti", String(64), index=True),
        Column("action", String(64), nullable=False),
        Column("object", String(512)),
        Column("outcome", String(16), nullable=False),
        Column("reason", Text),
        Column("detail", JSON, nullable=False),
    )


def _fit(text: str | None, length: int) -> str | None:
    """Cut a text to its column; without secrets, and printable, so that no event can forge a line of a report."""
    return None if text is None else printable(mask(text[:length]))[:length]


@dataclass(slots=True)
class _Pending:
    row: dict[str, Any]
    committed: "Future[None] | None"


class AuditWriter:
    """Writes events of one process, in order, from a thread of its own."""

    def __init__(self, engine: Engine, table: Table, *, clock: Clock = system_clock, capacity: int = _CAPACITY) -> None:
        self._engine = engine
        self._table = table
        self._clock = clock
        self._capacity = capacity
        self._writer = f"w_{secrets.token_hex(8)}"
        self._sequence = itertools.count(1)
        self._pending: deque[_Pending] = deque()
        self._changed = threading.Condition()
        self._urgent = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def values(self, event: AuditEvent) -> dict[str, Any]:
        """Return the row of an event, to insert in a transaction of the caller."""
        return {
            "time": int(self._clock() * 1000),
            "writer": self._writer,
            "sequence": next(self._sequence),
            "previous": None,
            "request_id": _fit(event.request_id, 64),
            "actor": _fit(event.actor, 255),
            "jti": _fit(event.jti, 64),
            "action": _fit(event.action, 64),
            "object": _fit(event.object, 512),
            "outcome": _fit(event.outcome, 16),
            "reason": _fit(event.reason, 1024),
            "detail": dict(event.detail),
        }

    def record(self, event: AuditEvent) -> None:
        """Have an event written within BATCH_INTERVAL.

        Raises:
            AuditUnavailable: the queue is full because the database takes no events.
        """
        self._append(_Pending(self.values(event), None))

    def commit(self, event: AuditEvent) -> "Future[None]":
        """Have an event written now; the future is done when it is on disk, or fails with AuditUnavailable.

        Raises:
            AuditUnavailable: the queue is full because the database takes no events.
        """
        committed: Future[None] = Future()
        self._append(_Pending(self.values(event), committed))
        return committed

    def commit_and_wait(self, event: AuditEvent) -> None:
        """Have an event written, and return when it is on disk. Not for use on an event loop.

        Raises:
            AuditUnavailable: it could not be written.
        """
        try:
            self.commit(event).result(_COMMIT_TIMEOUT)
        except TimeoutError:
            raise AuditUnavailable("the database takes too long") from None

    def close(self) -> None:
        """Write what is pending and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_COMMIT_TIMEOUT)

    def _append(self, pending: _Pending) -> None:
        with self._changed:
            if len(self._pending) >= self._capacity or self._closing:
                raise AuditUnavailable("the audit queue is full or closed")
            self._pending.append(pending)
            self._urgent |= pending.committed is not None
            if self._thread is None:
                # Begun on first use: a thread does not survive the fork of a worker.
                self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                self._changed.wait_for(lambda: self._urgent or self._closing, BATCH_INTERVAL)
                batch, self._urgent, closing = list(self._pending), False, self._closing
            written = self._write(batch) if batch else True
            if closing and (not written or len(batch) == len(self._pending) == 0):
                return

    def _write(self, batch: list[_Pending]) -> bool:
        """Write a batch. Tell whether the database took it, apart from rows that no database would take."""
        error = self._insert(batch)
        if error is None:
            self._settle(batch, None)
        elif isinstance(error, _OUTAGE):
            log.error("audit events cannot be written: %s", type(error).__name__)
            self._refuse_waiting(batch)
        else:
            # Something in the batch cannot be stored. It must not hold up the others for ever.
            for pending in batch:
                error = self._insert([pending])
                if isinstance(error, _OUTAGE):
                    return False
                if error is not None:
                    identity = pending.row["writer"], pending.row["sequence"], pending.row["action"]
                    log.error("audit event %s cannot be stored and is lost: %s", identity, type(error).__name__)
                self._settle([pending], error)
            return True
        return error is None

    def _insert(self, batch: list[_Pending]) -> Exception | None:
        try:
            with self._engine.begin() as connection:
                connection.execute(self._table.insert(), [pending.row for pending in batch])
        except Exception as error:  # noqa: BLE001 - this thread must outlive whatever a driver raises
            return error
        return None

    def _settle(self, batch: list[_Pending], error: Exception | None) -> None:
        """Take the first events of the queue out of it, and tell those who wait for them."""
        with self._changed:
            for _ in batch:
                self._pending.popleft()
        for pending in batch:
            _tell(pending, error)

    def _refuse_waiting(self, batch: list[_Pending]) -> None:
        """During an outage: whoever waits is told, and refuses; the others stay, in their order, for the next try."""
        with self._changed:
            for _ in batch:
                self._pending.popleft()
            self._pending.extendleft(reversed([pending for pending in batch if pending.committed is None]))
        for pending in batch:
            _tell(pending, AuditUnavailable())
        with self._changed:
            self._changed.wait_for(lambda: self._closing, BATCH_INTERVAL)


def _tell(pending: _Pending, error: Exception | None) -> None:
    # Whoever waited may be gone: a request that was cancelled.
    if pending.committed is None or not pending.committed.set_running_or_notify_cancel():
        return
    if error is None:
        pending.committed.set_result(None)
    else:
        pending.committed.set_exception(AuditUnavailable("the database does not take the audit event"))


def find_events(
    connection: Connection,
    table: Table,
    *,
    client: str | None = None,
    jti: str | None = None,
    request_id: str | None = None,
    limit: int = 50,
) -> Sequence[Mapping[str, Any]]:
    """Return the newest matching events, oldest of them first. Times are milliseconds since the epoch.

    `client` finds what a client did, or was refused, and what was done to it.
    """
    query: Select[Any] = select(table).order_by(table.c.time.desc(), table.c.id.desc()).limit(limit)
    if client is not None:
        query = query.where(or_(table.c.actor == client, table.c.object == client))
    for column, value in ((table.c.jti, jti), (table.c.request_id, request_id)):
        if value is not None:
            query = query.where(column == value)
    newest_first: list[Mapping[str, Any]] = [dict(row) for row in connection.execute(query).mappings()]
    return newest_first[::-1]
