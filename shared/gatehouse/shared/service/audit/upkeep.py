"""The upkeep of an audit log, in a thread of each process: a checkpoint each minute and at the end, and pruning.

Every process tries, and the first one does it for all. It is not the thread that writes the events: reading a minute of
events must not delay them. It also reads the audit keys again after a rotation, and notices checkpoints that vanish.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy import Connection, Engine, select

from gatehouse.shared.protocol.clock import Clock, iso_time
from gatehouse.shared.service.audit.checkpoints import (
    INTERVAL,
    Checkpoint,
    CheckpointRefused,
    last_checkpoint,
    listed_until,
    write_checkpoint,
)
from gatehouse.shared.service.audit.events import AuditTables
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.audit.pruning import PruningRefused, authentic_pruned, prune_audit
from gatehouse.shared.service.database import READ_ONLY
from gatehouse.shared.service.settings import InvalidSettings

ATTEMPT_INTERVAL: Final = 10.0
"""Seconds between two attempts of a process to write the next checkpoint."""

_CLOSE_TIMEOUT: Final = 5.0
"""Seconds that the end waits for a checkpoint or a deletion in progress."""

PATIENCE: Final = 300.0
"""Seconds after which an attempt that has not ended is logged: until it ends, this process writes no checkpoint."""

_LATE: Final = 600
"""Seconds. An error is logged if no checkpoint lists an event that is older."""

_DAY: Final = 86400

log = logging.getLogger(__name__)
lines = structlog.stdlib.get_logger(__name__)


class AuditUpkeep:
    """The thread of one process."""

    def __init__(
        self,
        engine: Engine,
        tables: AuditTables,
        keys: Callable[[], AuditKeys],
        clock: Clock,
        *,
        retention: int = 0,
        report: Callable[[float], object] = lambda _: None,
        interval: float = ATTEMPT_INTERVAL,
        patience: float = PATIENCE,
    ) -> None:
        """Create the thread.

        `keys` is called before each attempt, to read them again if they were rotated. `retention` is the number of days
        that events are kept; 0 keeps them forever. `report` is called in each attempt, unless it fails, with the time
        until when checkpoints list the events, in seconds since the epoch.
        """
        self._engine = engine
        self._reader = engine.execution_options(**READ_ONLY)
        self._tables = tables
        self._keys = keys
        self._clock = clock
        self._retention = retention * _DAY
        self._next_prune = 0.0
        self._report = report
        self._interval = interval
        self._patience = patience
        self._failing = False
        self._late = False
        self._seen: Checkpoint | None = None
        """The last checkpoint that this process saw."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-upkeep", daemon=True)

    def start(self) -> None:
        """Start the thread. Call this once, after the fork of a worker."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and write a last checkpoint, if it was started. Call this when all events are written."""
        if self._thread.ident is None:
            return
        self._closing.set()
        self._thread.join(_CLOSE_TIMEOUT)
        self._attempt(lambda: self._write_checkpoint(self._keys(), 0))

    def run_once(self) -> None:
        """Check that the last checkpoint seen is still there, write the one that is due and then prune. Never raises.

        Only the process that writes a checkpoint prunes.
        """
        self._attempt(self._work)

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            self.run_once()

    def _work(self) -> None:
        keys = self._keys()
        self._check_last_seen(keys)
        written = self._write_checkpoint(keys, INTERVAL)
        self._check_listed()
        if written is not None and self._retention and self._is_prune_due():
            before = self._clock() - self._retention
            number = prune_audit(self._engine, self._tables, keys, before=before, clock=self._clock)
            # Otherwise, each checkpoint would start another attempt for rows that are kept as evidence.
            self._next_prune = self._clock() + _DAY
            if number:
                log.info("%d audit events are older than the retention and were pruned", number)

    def _check_last_seen(self, keys: AuditKeys) -> None:
        """Log an error if the last checkpoint that this process saw was removed or replaced."""
        with self._reader.connect() as connection:
            last = last_checkpoint(connection, self._tables)
            if self._seen is not None and not self._is_continued(connection, keys, self._seen, last):
                log.error(
                    "checkpoint %d of the audit log, of %s, was removed or replaced: the database was altered, or "
                    "restored from a backup. Verify the audit log",
                    self._seen.number,
                    iso_time(self._seen.time / 1000),
                )
        self._seen = last

    def _is_continued(self, connection: Connection, keys: AuditKeys, seen: Checkpoint, last: Checkpoint | None) -> bool:
        # Someone who rewrites the log may hold a key that had expired when `seen` was written.
        if last is None or last.number < seen.number or last.kid in keys.expired(seen.time):
            return False
        column = self._tables.checkpoints.c
        link = connection.scalar(select(column.link).where(column.number == seen.number))
        if link is not None:
            return bool(link == seen.link)
        try:
            return seen.time < authentic_pruned(connection, self._tables, keys).before
        except PruningRefused:
            return False

    def _write_checkpoint(self, keys: AuditKeys, interval: float) -> Checkpoint | None:
        written = write_checkpoint(self._engine, self._tables, keys, self._clock(), interval=interval)
        if written is not None:
            # A copy of this line that is kept elsewhere verifies the log later.
            lines.info("audit checkpoint", checkpoint=written.number, kid=written.kid, link=written.link)
            self._seen = written
        return written

    def _check_listed(self) -> None:
        """Log an error if no checkpoint lists events of more than ten minutes ago, and tell `report`."""
        now = self._clock()
        with self._reader.connect() as connection:
            until = listed_until(connection, self._tables, now)
        self._report(until)
        late = now - until > _LATE
        if late and not self._late:
            log.error(
                "no checkpoint lists the events of the audit log since %s, although checkpoints can be written: ids of "
                "events were altered, or a clock is wrong. Verify the audit log",
                iso_time(until),
            )
        self._late = late

    def _is_prune_due(self) -> bool:
        """Tell whether an event is a day older than the retention, so that a day of events is deleted together."""
        if self._clock() < self._next_prune:
            return False
        columns = self._tables.events.c
        limit = int((self._clock() - self._retention - _DAY) * 1000)
        with self._reader.connect() as connection:
            return connection.execute(select(columns.id).where(columns.time < limit).limit(1)).first() is not None

    def _attempt(self, work: Callable[[], object]) -> None:
        overdue = threading.Timer(self._patience, self._log_overdue)
        overdue.daemon = True
        overdue.start()
        try:
            self._try(work)
        finally:
            overdue.cancel()

    def _log_overdue(self) -> None:
        log.error(
            "an attempt to write an audit checkpoint or to prune has not ended for %.0f s: until it ends, this process "
            "writes no checkpoint",
            self._patience,
        )

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the next attempt follows
            # One line for each outage, however long it lasts.
            if not self._failing:
                reason = str(error) if isinstance(error, CheckpointRefused | InvalidSettings) else type(error).__name__
                log.error("audit checkpoints and pruning fail and will be retried: %s", reason)
            self._failing = True
            return
        if self._failing:
            log.info("audit checkpoints and pruning work again")
        self._failing = False
