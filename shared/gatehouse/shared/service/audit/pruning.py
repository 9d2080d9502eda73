"""Deletes old events of the audit log, and leaves a checkpoint that says what was deleted.

From each chain, only its beginning is deleted: up to its first row that is not older than the limit. The checkpoint is
committed with the deletion, so the database never looks altered, whenever the work is interrupted.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, delete, func, select

from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.audit.chain import AUTHENTICATED, MAX_GAP, is_authentic
from gatehouse.shared.service.audit.checkpoints import (
    PRUNE,
    Checkpoint,
    CheckpointRefused,
    append_checkpoint,
    last_checkpoint,
    lock_checkpoints,
)
from gatehouse.shared.service.audit.events import AuditTables, stored_columns
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.database import READ_ONLY

_BATCH: Final = 5000
"""Rows and checkpoints that one transaction deletes, at most. SQLite's other writers wait for about 0.1 s."""

_CLOCK_DIFFERENCE: Final = 600 * 1000
"""Milliseconds. Checkpoints are kept this much longer than rows, because the clocks of two nodes may differ."""


class Pruned(NamedTuple):
    """The content of a checkpoint of kind `prune`. It replaces that of every earlier one."""

    before: int = 0
    """Milliseconds since the epoch: every deleted row is older."""
    writers: Mapping[str, Sequence[Any]] = {}
    """`[sequence, link, time]` of the last deleted row of each writer that may have further rows."""
    checkpoint: Sequence[Any] = (0, "")
    """`[number, link]` of the last deleted checkpoint."""


MALFORMED: Final = (ValueError, TypeError, KeyError)
"""What reading the content of an altered checkpoint can raise."""


class PruningRefused(CheckpointRefused):
    """The audit log was altered, so nothing more is pruned. The message is for the administrator."""


def last_pruned(connection: Connection, tables: AuditTables) -> Pruned:
    """Return what was deleted so far, which verification may prove wrong. Raises one of MALFORMED."""
    checkpoint = last_checkpoint(connection, tables, PRUNE)
    return Pruned() if checkpoint is None else Pruned(**json.loads(checkpoint.content))


def authentic_pruned(connection: Connection, tables: AuditTables, keys: AuditKeys) -> Pruned:
    """Return what was deleted so far. Raises PruningRefused, because a forged boundary would become authentic."""
    checkpoint = last_checkpoint(connection, tables, PRUNE)
    if checkpoint is None:
        return Pruned()
    try:
        pruned = Pruned(**json.loads(checkpoint.content))
        number, link = pruned.checkpoint
        if checkpoint.number != number + 1:
            column = tables.checkpoints.c
            link = connection.scalar(select(column.link).where(column.number == checkpoint.number - 1))
        authentic = checkpoint.is_authentic(keys, link)
    except MALFORMED:
        authentic = False
    if not authentic:
        raise PruningRefused(
            f"Checkpoint {checkpoint.number} of the audit log, which says what was pruned before, cannot be verified "
            "with the audit keys, so nothing is pruned. Verify the audit log."
        )
    return pruned


class _Row(NamedTuple):
    id: int
    link: str
    values: Sequence[Any]
    """Those of AUTHENTICATED."""

    @property
    def writer(self) -> str:
        return str(self.values[0])

    @property
    def sequence(self) -> int:
        return int(self.values[1])

    @property
    def time(self) -> int:
        return int(self.values[3])


def prune_audit(engine: Engine, tables: AuditTables, keys: AuditKeys, *, before: float, clock: Clock) -> int:
    """Delete the events before a time, in seconds since the epoch, and old checkpoints. Return the number of events.

    The newest event always stays, so that SQLite never assigns an id again. A writer with a gap keeps its rows from
    there on, as evidence. Several processes may prune at once: one of them does it.

    Raises:
        PruningRefused: the boundary of the last time, or an event or a checkpoint that is due, was altered.
        SQLAlchemyError: the database failed. What was deleted until then is deleted.
    """
    return _Pruning(engine, tables, keys, int(before * 1000), clock).run()


class _Pruning:
    def __init__(self, engine: Engine, tables: AuditTables, keys: AuditKeys, limit: int, clock: Clock) -> None:
        self._engine = engine
        self._reader = engine.execution_options(**READ_ONLY)
        self._tables = tables
        self._keys = keys
        self._limit = limit
        self._clock = clock
        self._kept: set[str] = set()
        """Writers whose further rows stay."""

    def run(self) -> int:
        with self._reader.connect() as connection:
            self._pruned = authentic_pruned(connection, self._tables, self._keys)
            last_id = self._last_id(connection)
            finished = self._finished(connection)
        writers = {writer: end for writer, end in self._pruned.writers.items() if writer not in finished}
        number = cursor = 0
        while rows := self._read(cursor, last_id):
            cursor = rows[-1].id
            if chosen := [row for row in rows if self._choose(row, writers)]:
                if not self._delete(chosen, writers):
                    break
                number += len(chosen)
        return number

    def _last_id(self, connection: Connection) -> int:
        """Return the id up to which rows are considered."""
        columns = self._tables.events.c
        newest = connection.scalar(select(func.max(columns.id))) or 0
        old = select(columns.id).where(columns.time < self._limit).order_by(columns.time.desc(), columns.id.desc())
        return min(connection.scalar(old.limit(1)) or 0, newest - 1)

    def _finished(self, connection: Connection) -> set[str]:
        """Return the writers of earlier deletions that have no rows left, and will have no more.

        The next row of a chain is within MAX_GAP of the one before, so it was due for the last deletion too.
        """
        ended = self._pruned.before - 2 * MAX_GAP
        old = {writer: time for writer, (_, _, time) in self._pruned.writers.items() if time < ended}
        if not old:
            return set()
        columns = self._tables.events.c
        around = columns.time.between(min(old.values()) - MAX_GAP, max(old.values()) + MAX_GAP)
        return old.keys() - set(connection.scalars(select(columns.writer).where(around).distinct()))

    def _read(self, cursor: int, last_id: int) -> Sequence[_Row]:
        columns = self._tables.events.c
        query = (
            select(columns.id, columns.link, *stored_columns(self._tables.events, AUTHENTICATED))
            .where(columns.id > cursor, columns.id <= last_id)
            .order_by(columns.id)
            .limit(_BATCH)
        )
        with self._reader.connect() as connection:
            return [_Row(id_, link, values) for id_, link, *values in connection.execute(query)]

    def _choose(self, row: _Row, writers: dict[str, Sequence[Any]]) -> bool:
        """Tell whether a row is deleted, and note it as the last one of its writer."""
        end = writers.get(row.writer, (0, ""))
        if row.time >= self._limit or row.writer in self._kept or row.sequence != end[0] + 1:
            self._kept.add(row.writer)
            return False
        # The time may have been altered, so that this deletes what proves it.
        try:
            authentic = is_authentic(self._keys, end[1], row.link, row.values)
        except KeyError:
            authentic = False
        if not authentic:
            raise _refused(f"Event {row.sequence} of writer {quoted(row.writer)} (id {row.id})")
        writers[row.writer] = (row.sequence, row.link, row.time)
        return True

    def _delete(self, rows: Sequence[_Row], writers: Mapping[str, Sequence[Any]]) -> bool:
        """Delete rows in one transaction with a checkpoint. Return False if another process prunes too."""
        with self._engine.begin() as connection:
            lock_checkpoints(connection)
            if authentic_pruned(connection, self._tables, self._keys) != self._pruned:
                return False
            before = max(self._limit, self._pruned.before)
            previous = last_checkpoint(connection, self._tables)
            pruned = Pruned(before, writers, self._delete_checkpoints(connection))
            checkpoint = append_checkpoint(
                connection, self._tables, self._keys, previous, self._clock(), PRUNE, pruned._asdict()
            )
            events = self._tables.events
            connection.execute(delete(events).where(events.c.id.in_([row.id for row in rows])))
        self._pruned = Pruned(**json.loads(checkpoint.content))
        return True

    def _delete_checkpoints(self, connection: Connection) -> Sequence[Any]:
        """Delete the oldest checkpoints. Return the number and link of the last one that was ever deleted."""
        table = self._tables.checkpoints
        end = self._pruned.checkpoint
        for row in connection.execute(select(table).order_by(table.c.number).limit(_BATCH)):
            checkpoint = Checkpoint(*row)
            if checkpoint.time >= self._limit - _CLOCK_DIFFERENCE:
                break
            try:
                authentic = checkpoint.number == end[0] + 1 and checkpoint.is_authentic(self._keys, end[1])
            except KeyError:
                authentic = False
            if not authentic:
                raise _refused(f"Checkpoint {checkpoint.number}")
            end = (checkpoint.number, checkpoint.link)
        connection.execute(delete(table).where(table.c.number <= end[0]))
        return end


def _refused(what: str) -> PruningRefused:
    return PruningRefused(
        f"{what} of the audit log cannot be verified with the audit keys, so nothing more is pruned. "
        "Verify the audit log."
    )
