"""Deletes old events of the audit log, and leaves a checkpoint that says what was deleted.

From each chain, only its beginning is deleted: up to its first row that is not older than the limit. The checkpoint is
committed with the deletion, so the database never looks altered, whenever the work is interrupted.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Select, delete, select

from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.audit.chain import AUTHENTICATED, MAX_GAP, is_authentic
from gatehouse.shared.service.audit.checkpoints import (
    PRUNE,
    Checkpoint,
    CheckpointRefused,
    append_checkpoint,
    is_verified,
    last_checkpoint,
    lock_checkpoints,
)
from gatehouse.shared.service.audit.events import AuditTables, stored_columns
from gatehouse.shared.service.audit.ids import newest_id
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.database import READ_ONLY

_BATCH: Final = 5000
"""Rows and checkpoints that one transaction deletes, at most. SQLite's other writers wait for about 0.1 s."""

_RECENT: Final = 60
"""Seconds. On PostgreSQL, a row of this time may still be committed before those that are there."""

_MARGIN: Final = 86400 * 1000
"""Milliseconds. Checkpoints are kept this much longer than rows, and so are the writers of deleted rows: more than
MAX_GAP, and than what the clocks of two nodes differ by."""


class Pruned(NamedTuple):
    """The content of a checkpoint of kind `prune`. It replaces that of every earlier one."""

    before: int = 0
    """Milliseconds since the epoch: every deleted row is older."""
    complete: int = 0
    """Milliseconds since the epoch: every older row that was not deleted belongs to one of `writers`, so a chain that
    was deleted completely cannot be inserted again. Set at the end of a deletion, to a day before `before`."""
    writers: Mapping[str, Sequence[Any]] = {}
    """`[sequence, link, time]` of the last deleted row of each writer that has or may have further rows; a sequence of
    0 and no link if none of its rows was deleted."""
    checkpoint: Sequence[Any] = (0, "")
    """`[number, link]` of the last deleted checkpoint."""

    @classmethod
    def read(cls, checkpoint: Checkpoint | None) -> "Pruned":
        """Return the content of the last checkpoint of this kind, if there is one. Raises one of MALFORMED."""
        return cls() if checkpoint is None else cls(**json.loads(checkpoint.content))


class PruningRefused(CheckpointRefused):
    """The audit log was altered, so nothing more is pruned. The message is for the administrator."""


def authentic_pruned(connection: Connection, tables: AuditTables, keys: AuditKeys) -> Pruned:
    """Return what was deleted so far. Raises PruningRefused, because a forged boundary would become authentic."""
    checkpoint = last_checkpoint(connection, tables, PRUNE)
    if checkpoint is not None and not is_verified(connection, tables, keys, checkpoint):
        raise PruningRefused(
            f"Checkpoint {checkpoint.number} of the audit log, which says what was pruned before, cannot be verified "
            "with the audit keys, so nothing is pruned. Verify the audit log."
        )
    return Pruned.read(checkpoint)


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

    The events of the last minute always stay, and the newest event, so that SQLite never assigns an id again. A writer
    with a gap keeps its rows from there on, as evidence. Several processes may prune at once: one of them does it.

    Raises:
        PruningRefused: the boundary of the last time, or an event or a checkpoint that is due, was altered.
        SQLAlchemyError: the database failed. What was deleted until then is deleted.
    """
    return _Pruning(engine, tables, keys, int(min(before, clock() - _RECENT) * 1000), clock).run()


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
            newest = self._newest(connection)
            if newest is None:
                return 0
            last_id = min(self._last_old_id(connection), newest.id - 1)
            finished = self._finished(connection)
        writers = {writer: end for writer, end in self._pruned.writers.items() if writer not in finished}
        number = 0
        chosen: Sequence[_Row] = ()
        ends: Mapping[str, Sequence[Any]] = {}
        for further, ends_after in self._batches(writers, last_id, newest.id):
            if chosen and not self._delete(chosen, ends, self._pruned.complete):
                return number
            number += len(chosen)
            chosen, ends = further, ends_after
        # Only now is every writer with older rows known.
        self._note_kept(newest, writers)
        if chosen and self._delete(chosen, writers, max(self._limit - _MARGIN, self._pruned.complete)):
            number += len(chosen)
        return number

    def _batches(
        self, writers: dict[str, Sequence[Any]], last_id: int, newest_id: int
    ) -> Iterator[tuple[Sequence["_Row"], Mapping[str, Sequence[Any]]]]:
        """Yield the rows to delete, a batch at a time, each with the writers after its deletion."""
        ids = self._tables.events.c.id
        for condition in (ids <= last_id, ids.in_(self._late_ids(last_id, newest_id))):
            cursor = 0
            while rows := self._read(cursor, condition):
                cursor = rows[-1].id
                if chosen := [row for row in rows if self._choose(row, writers)]:
                    yield chosen, dict(writers)

    def _late_ids(self, last_id: int, newest_id: int) -> Sequence[int]:
        """Return the ids of old rows among the newer ones: of a clock that was far behind, or inserted again."""
        columns = self._tables.events.c
        # By the index of the time. The oldest rows are few: those that earlier deletions left.
        oldest = select(columns.id).where(columns.time < self._pruned.complete).order_by(columns.time).limit(_BATCH)
        with self._reader.connect() as connection:
            return [id_ for id_ in connection.scalars(oldest) if last_id < id_ < newest_id]

    def _newest(self, connection: Connection) -> "_Row | None":
        query = self._rows().where(self._tables.events.c.id == newest_id(connection, self._tables.events))
        return next((_Row(id_, link, values) for id_, link, *values in connection.execute(query)), None)

    def _rows(self) -> Select[Any]:
        columns = self._tables.events.c
        return select(columns.id, columns.link, *stored_columns(self._tables.events, AUTHENTICATED))

    def _last_old_id(self, connection: Connection) -> int:
        """Return the id of the newest row before the limit. Older rows can have higher ids, if clocks differ."""
        columns = self._tables.events.c
        old = select(columns.id).where(columns.time < self._limit).order_by(columns.time.desc(), columns.id.desc())
        return connection.scalar(old.limit(1)) or 0

    def _finished(self, connection: Connection) -> set[str]:
        """Return the writers of earlier deletions that have no rows left, and will have no more.

        The next row of a chain is within MAX_GAP of the one before, so it was due for the last deletion too.
        """
        ended = self._pruned.complete
        old = {writer: time for writer, (_, _, time) in self._pruned.writers.items() if time < ended}
        if not old:
            return set()
        columns = self._tables.events.c
        around = columns.time.between(min(old.values()) - MAX_GAP, max(old.values()) + MAX_GAP)
        return old.keys() - set(connection.scalars(select(columns.writer).where(around).distinct()))

    def _read(self, cursor: int, condition: ColumnElement[bool]) -> Sequence[_Row]:
        ids = self._tables.events.c.id
        query = self._rows().where(ids > cursor, condition).order_by(ids).limit(_BATCH)
        with self._reader.connect() as connection:
            return [_Row(id_, link, values) for id_, link, *values in connection.execute(query)]

    def _choose(self, row: _Row, writers: dict[str, Sequence[Any]]) -> bool:
        """Tell whether a row is deleted, and note it as the last one of its writer."""
        end = writers.get(row.writer, (0, ""))
        if row.time >= self._limit or row.writer in self._kept or row.sequence != end[0] + 1:
            self._kept.add(row.writer)
            self._note_kept(row, writers)
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

    @staticmethod
    def _note_kept(row: _Row, writers: dict[str, Sequence[Any]]) -> None:
        writers.setdefault(row.writer, (0, "", row.time))

    def _delete(self, rows: Sequence[_Row], writers: Mapping[str, Sequence[Any]], complete: int) -> bool:
        """Delete rows in one transaction with a checkpoint. Return False if another process prunes too."""
        with self._engine.begin() as connection:
            lock_checkpoints(connection)
            if authentic_pruned(connection, self._tables, self._keys) != self._pruned:
                return False
            before = max(self._limit, self._pruned.before)
            previous = last_checkpoint(connection, self._tables)
            pruned = Pruned(before, complete, writers, self._delete_checkpoints(connection))
            checkpoint = append_checkpoint(
                connection, self._tables, self._keys, previous, self._clock(), PRUNE, pruned._asdict()
            )
            events = self._tables.events
            connection.execute(delete(events).where(events.c.id.in_([row.id for row in rows])))
        self._pruned = Pruned.read(checkpoint)
        return True

    def _delete_checkpoints(self, connection: Connection) -> Sequence[Any]:
        """Delete the oldest checkpoints. Return the number and link of the last one that was ever deleted."""
        table = self._tables.checkpoints
        end = self._pruned.checkpoint
        for row in connection.execute(select(table).order_by(table.c.number).limit(_BATCH)):
            checkpoint = Checkpoint(*row)
            if checkpoint.time >= self._limit - _MARGIN:
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
