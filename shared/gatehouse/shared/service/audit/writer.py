"""Writes audit events from a thread: immediately, or with others at most 100 ms later.

An event is recorded in one of three ways, each with its own guarantee:

* `AuditRows.record` adds it to the caller's own transaction: the change and its event commit together or not at all.
  For changes.
* `AuditWriter.commit_and_wait`, and `commit_async` on an event loop, return when the row is on disk. For refusals:
  recorded before the answer leaves.
* `AuditWriter.record` returns at once; the row is written with others at most 100 ms later. For tokens issued and calls
  that only read. A crash loses what was recorded in that interval, and what was being committed.

Nothing is dropped silently: while the database does not accept events, the writer refuses further ones, and the
servers refuse their requests. Events recorded before the outage was noticed stay in memory until it ends. The same
thread writes the heartbeat, which notices an outage without a request, and its end.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gatehouse.shared.service.audit.chain import AuditRow
from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.deadline import remaining
from gatehouse.shared.service.heartbeat import SERVER, WriteHealth, write_heartbeat

BATCH_INTERVAL = 0.1
"""Seconds that a recorded event may wait for others."""

_CAPACITY = 10_000
_CLOSE_TIMEOUT = 10
"""Seconds that the last events may need. Longer than the wait for SQLite's write lock."""

_OUTAGE = (OperationalError, InterfaceError, InternalError, ProgrammingError, PoolTimeout)
"""The database is unreachable, locked, out of connections, or refuses every event: another attempt may succeed.

PostgreSQL raises ProgrammingError if the table or the right to write it is gone, and InternalError if it is read-only.
A fault of one event is a DataError, an IntegrityError, or not an error of a driver.
"""

log = logging.getLogger(__name__)


class AuditUnavailable(Exception):
    """The event cannot be recorded, so its action must not happen."""


class _Pending(NamedTuple):
    row: AuditRow
    committed: "Future[None] | None" = None
    """Completes when the row is on disk."""

    def settle(self, error: AuditUnavailable | None) -> None:
        # The waiting request may have been cancelled.
        if self.committed is None or not self.committed.set_running_or_notify_cancel():
            return
        if error is None:
            self.committed.set_result(None)
        else:
            self.committed.set_exception(error)


class AuditWriter:
    """Writes the events of one process, in order."""

    def __init__(
        self,
        engine: Engine,
        rows: AuditRows,
        *,
        capacity: int = _CAPACITY,
        monotonic: Callable[[], float] = time.monotonic,
        report: Callable[[bool, int], None] = lambda succeeded, waiting: None,
    ) -> None:
        """Create the writer. Its thread calls `report` after each attempt to write.

        The arguments are whether the attempt succeeded, and how many events wait to be written.
        """
        self.rows = rows
        self._engine = engine
        self._insert_row = rows.driver_insert(engine.dialect)
        self._chain = rows.chains.new()
        self._capacity = capacity
        self._report = report
        self._pending: deque[_Pending] = deque()
        self._in_flight = 0
        self._changed = threading.Condition()
        self._oldest = 0.0
        """When the first of the pending events was recorded."""
        self._urgent = False
        self._monotonic = monotonic
        self._health = WriteHealth(monotonic)
        self._beats = False
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def available(self) -> bool:
        """Whether the database accepts events: the last write succeeded and, once the heartbeat started, is recent."""
        if not self._beats:
            return not self._health.failing
        return self._health.ok and self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the heartbeat. Call this after the fork of a worker."""
        with self._changed:
            self._beats = True
            self._start_thread()
            self._changed.notify_all()

    def record(self, event: AuditEvent) -> None:
        """Queue an event to be written within BATCH_INTERVAL.

        Raises:
            AuditUnavailable: the database accepts no events now, the queue is full, the writer is closed, or the event
                cannot be stored.
        """
        self._append(_Pending(self._row(event)))

    def commit(self, event: AuditEvent) -> "Future[None]":
        """Queue an event to be written now. The future completes when it is on disk, or fails with AuditUnavailable.

        Raises:
            AuditUnavailable: the queue is full because the database accepts no events, the writer is closed, or the
                event cannot be stored.
        """
        committed: Future[None] = Future()
        self._append(_Pending(self._row(event), committed))
        return committed

    def commit_and_wait(self, event: AuditEvent) -> None:
        """Write an event, and return when it is on disk. Waits until the deadline. Not for use on an event loop.

        Raises:
            AuditUnavailable: it could not be written.
        """
        try:
            self.commit(event).result(remaining())
        except TimeoutError:
            raise AuditUnavailable("the database takes too long") from None

    async def commit_async(self, event: AuditEvent) -> None:
        """Write an event, and return when it is on disk. Waits until the deadline, without blocking the event loop.

        Raises:
            AuditUnavailable: it could not be written.
        """
        try:
            await asyncio.wait_for(asyncio.wrap_future(self.commit(event)), remaining())
        except TimeoutError:
            raise AuditUnavailable("the database takes too long") from None

    def close(self) -> None:
        """Write the pending events, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT)

    def _row(self, event: AuditEvent) -> AuditRow:
        try:
            return self.rows.row(event)
        except TypeError:
            log.exception("audit event %s cannot be stored", event.action)
            raise AuditUnavailable("the audit event cannot be stored") from None

    def _append(self, pending: _Pending) -> None:
        with self._changed:
            waiting = len(self._pending) + self._in_flight
            if waiting >= self._capacity or self._closing:
                raise AuditUnavailable("the audit queue is full or closed")
            if self._health.failing and (waiting or self._beats) and pending.committed is None:
                raise AuditUnavailable("the database accepts no audit events")
            if not self._pending:
                self._oldest = self._monotonic()
            self._pending.append(pending)
            self._urgent |= pending.committed is not None
            # Without an urgent event, the thread already waits for the end of the batch.
            if self._urgent or len(self._pending) == 1:
                self._start_thread()
                self._changed.notify_all()

    def _start_thread(self) -> None:
        # Started on first use, because a thread does not survive the fork of a worker.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._write(batch)
            else:
                self._beat()

    def _next_batch(self) -> list[_Pending] | None:
        """Wait for events and return all of them: none if a heartbeat is due; None if the writer is closed."""
        with self._changed:
            self._in_flight = 0
            while not (self._pending or self._closing):
                wait = self._health.due_in() if self._beats else None
                if wait == 0:
                    return []
                self._changed.wait(wait)
            if not self._pending:
                return None
            while not (self._urgent or self._closing) and (left := self._time_left()) > 0:
                self._changed.wait(left)
            batch, self._urgent = list(self._pending), False
            self._pending.clear()
            self._in_flight = len(batch)
            return batch

    def _time_left(self) -> float:
        """Return the seconds for which the pending events may still wait for others."""
        return self._oldest + BATCH_INTERVAL - self._monotonic()

    def _beat(self) -> None:
        error = self._commit(lambda connection: write_heartbeat(connection, SERVER, self.rows.clock()))
        if error is not None:
            self._health.fail(error)

    def _write(self, batch: list[_Pending]) -> None:
        error = self._insert(batch)
        if error is None:
            _settle(batch, None)
        elif isinstance(error, _OUTAGE):
            self._keep_for_later(batch)
        else:
            # One event of the batch cannot be stored. It must not block the others forever.
            self._write_one_by_one(batch)

    def _write_one_by_one(self, batch: list[_Pending]) -> None:
        for position, pending in enumerate(batch):
            error = self._insert([pending])
            if isinstance(error, _OUTAGE):
                self._keep_for_later(batch[position:])
                return
            if error is not None:
                identity = pending.row.action, pending.row.request_id
                log.error("audit event %s cannot be stored and is lost: %s", identity, type(error).__name__)
            _settle([pending], error)

    def _insert(self, batch: list[_Pending]) -> Exception | None:
        def write(connection: Connection) -> None:
            linked, self._chain = self.rows.chains.extend(self._chain, [pending.row for pending in batch])
            connection.exec_driver_sql(self._insert_row, linked)

        error = self._commit(write)
        if error is not None:
            # The rows may have been committed nevertheless, so the next ones begin another chain.
            self._chain = self.rows.chains.new()
        return error

    def _commit(self, write: Callable[[Connection], object]) -> Exception | None:
        """Write in a transaction. Return the error if it failed, and note whether the database accepts writes."""
        try:
            with self._engine.begin() as connection:
                write(connection)
        except Exception as error:  # noqa: BLE001 - this thread must outlive whatever a driver raises
            if isinstance(error, _OUTAGE):
                self._health.fail(error)
            self._report(False, len(self._pending) + self._in_flight)
            return error
        self._health.succeed()
        self._report(True, len(self._pending))
        return None

    def _keep_for_later(self, batch: list[_Pending]) -> None:
        """During an outage, fail the events that callers wait for, and keep the others for the next attempt."""
        _settle(batch, AuditUnavailable())
        kept = [pending for pending in batch if pending.committed is None]
        with self._changed:
            if self._closing:
                lost = ", ".join(f"{pending.row.action} {pending.row.jti}" for pending in kept)
                log.error("%d audit events are lost, the database is down at shutdown: %s", len(kept), lost)
                return
            self._pending.extendleft(reversed(kept))
            self._changed.wait_for(lambda: self._closing, BATCH_INTERVAL)


def _settle(batch: list[_Pending], error: Exception | None) -> None:
    for pending in batch:
        pending.settle(None if error is None else AuditUnavailable("the database does not accept the audit event"))
