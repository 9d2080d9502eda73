"""The checkpoints of the audit log: where every chain ended at a time, so that neither its end nor all of it vanishes.

A checkpoint of kind `heads` lists the writers whose rows were committed since the one before, each with its last row.
One of kind `prune` says which rows and checkpoints were deleted on purpose. The checkpoints are a chain themselves,
numbered without gaps, and any process may write the next one. They are also written to the log, where those who can
write to the database cannot remove them.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, func, insert, select, text

from gatehouse.shared.service.audit.events import AuditTables
from gatehouse.shared.service.audit.ids import newest_id
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.database import READ_ONLY

HEADS: Final = "heads"
PRUNE: Final = "prune"

INTERVAL: Final = 60
"""Seconds between two checkpoints of a database."""

_OVERLAP: Final = 60
"""Seconds. A checkpoint reads the rows of this time before the last one again, because PostgreSQL can commit a row
after one with a higher id."""

_STEP: Final = 100_000
"""Rows that one statement reads, so that it ends within its time limit."""

_LOOKUPS: Final = 1000
"""Rows that one statement finds by their ids."""

MALFORMED: Final = (ValueError, TypeError, KeyError)
"""What reading the content of an altered checkpoint can raise."""


class CheckpointRefused(Exception):
    """The audit log was altered, so no further checkpoint is written. The message is for the administrator."""


class Checkpoint(NamedTuple):
    """A row of the table."""

    number: int
    time: int
    """Milliseconds since the epoch."""
    kid: str
    kind: str
    content: str
    """JSON. Of `heads`: `last`, the highest id that was read, and `heads`, `[sequence, link, time]` by writer."""
    link: str

    def is_authentic(self, keys: AuditKeys, previous: str) -> bool:
        """Tell whether it is as it was written, after the checkpoint with the link `previous`.

        Raises KeyError if there is no such key.
        """
        # SQLite stores bytes in any column, and JSON does not tell them from text.
        return not any(isinstance(value, bytes) for value in self) and self.link == _link(keys, previous, self[:-1])


def _link(keys: AuditKeys, previous: str, values: Sequence[Any]) -> str:
    return keys.authenticate(values[2], "checkpoint", previous, *values)


def last_checkpoint(connection: Connection, tables: AuditTables, kind: str | None = None) -> Checkpoint | None:
    """Return the last checkpoint, or the last one of a kind."""
    table = tables.checkpoints
    query = select(table).order_by(table.c.number.desc()).limit(1)
    found = connection.execute(query if kind is None else query.where(table.c.kind == kind)).first()
    return None if found is None else Checkpoint(*found)


def append_checkpoint(
    connection: Connection,
    tables: AuditTables,
    keys: AuditKeys,
    previous: Checkpoint | None,
    now: float,
    kind: str,
    content: Mapping[str, Any],
) -> Checkpoint:
    """Insert the checkpoint after `previous`, in a transaction with `lock_checkpoints`. `now` is in seconds."""
    number, link = (0, "") if previous is None else (previous.number, previous.link)
    values = (number + 1, int(now * 1000), keys.kid, kind, json.dumps(content, separators=(",", ":")))
    checkpoint = Checkpoint(*values, _link(keys, link, values))
    connection.execute(insert(tables.checkpoints).values(checkpoint._asdict()))
    return checkpoint


def lock_checkpoints(connection: Connection) -> None:
    """Let other transactions that append a checkpoint wait for this one. On SQLite, every writer waits already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('gatehouse.audit_checkpoint'))"))


def write_checkpoint(
    engine: Engine, tables: AuditTables, keys: AuditKeys, now: float, *, interval: float = INTERVAL
) -> Checkpoint | None:
    """Write a checkpoint of kind `heads`, unless there is one of the last `interval` seconds or nothing to say.

    It may miss a row that is committed more than a minute after it was inserted. Such a row is in a later checkpoint if
    its writer has further rows.

    Raises:
        CheckpointRefused: an earlier one was altered, from which this one would begin, or the newest row that it read
            is gone.
        SQLAlchemyError: the database failed.
    """
    with engine.execution_options(**READ_ONLY).connect() as connection:
        before = last_checkpoint(connection, tables)
        if before is not None and 0 <= now * 1000 - before.time < interval * 1000:
            return None
        content = _new_heads(connection, tables, keys, int(now * 1000))
    if content is None:
        return None
    # Read before, so that the lock is short. What was read stays true.
    with engine.begin() as connection:
        lock_checkpoints(connection)
        previous = last_checkpoint(connection, tables)
        if interval and previous != before:
            # Another process came first.
            return None
        return append_checkpoint(connection, tables, keys, previous, now, HEADS, content)


def _new_heads(connection: Connection, tables: AuditTables, keys: AuditKeys, now: int) -> Mapping[str, Any] | None:
    """Return the content of the next checkpoint; None if no row was inserted and no key expired since the last one.

    No row under a retired key is valid if the first checkpoint after its expiry does not list it, so that one must not
    wait for the next event. `now` is in milliseconds.
    """
    # Before the ids, so that no checkpoint that is written meanwhile has read higher ones.
    before = last_checkpoint(connection, tables, HEADS)
    read = _last_id(connection, tables, keys, before)
    last = newest_id(connection, tables.events)
    if before is not None and last < read:
        # The newest row is never pruned.
        raise CheckpointRefused(
            f"The highest id of an event is {last}, but checkpoint {before.number} of the audit log has read the "
            f"events up to the id {read}: events were removed, or their ids were altered. No further checkpoint is "
            "written before new events have higher ids. Verify the audit log."
        )
    if last == read and not (before and keys.expired(now, since=before.time)):
        return None
    start = 0
    if before is not None:
        start = _last_id(connection, tables, keys, _overlapped(connection, tables, before))
    newest: dict[str, int] = {}
    while ids := _newest_ids(connection, tables, start, last):
        newest |= ids
        start = max(ids.values())
    return {"last": last, "heads": _rows(connection, tables, newest.values())}


def _newest_ids(connection: Connection, tables: AuditTables, start: int, last: int) -> Mapping[str, int]:
    """Return the highest id of each writer in the next rows after the id `start`, up to the id `last`."""
    columns = tables.events.c
    # A number of rows, because a range of ids has no end if somebody gives a row a high one.
    rows = select(columns.id, columns.writer).where(columns.id > start, columns.id <= last)
    step = rows.order_by(columns.id).limit(_STEP).subquery()
    query = select(step.c.writer, func.max(step.c.id)).group_by(step.c.writer)
    return {row[0]: row[1] for row in connection.execute(query)}


def listed_until(connection: Connection, tables: AuditTables, now: float) -> float:
    """Return the time until when the last checkpoint lists the events, in seconds since the epoch.

    That is the time of the oldest event after it, or `now` if there is none. A checkpoint has been written before, or
    there are no events.
    """
    checkpoint = last_checkpoint(connection, tables, HEADS)
    if checkpoint is None:
        return now
    heads = json.loads(checkpoint.content)["heads"]
    columns = tables.events.c
    # Those of a node whose clock is ahead can be listed.
    later = columns.time > checkpoint.time + _OVERLAP * 1000
    query = select(columns.writer, columns.sequence, columns.time).where(later).order_by(columns.time).limit(_LOOKUPS)
    unlisted = (time for writer, sequence, time in connection.execute(query) if sequence > heads.get(writer, (0,))[0])
    return min(next(unlisted, now * 1000) / 1000, now)


def _overlapped(connection: Connection, tables: AuditTables, before: Checkpoint) -> Checkpoint | None:
    """Return the checkpoint after which rows are read again."""
    table = tables.checkpoints
    earlier = table.c.time <= before.time - _OVERLAP * 1000
    query = select(table).where(table.c.kind == HEADS, earlier).order_by(table.c.number.desc()).limit(1)
    found = connection.execute(query).first()
    return None if found is None else Checkpoint(*found)


def _last_id(connection: Connection, tables: AuditTables, keys: AuditKeys, checkpoint: Checkpoint | None) -> int:
    """Return the highest id that a checkpoint of kind `heads` has read.

    Raises CheckpointRefused: with a higher id than the true one, rows would never be listed.
    """
    if checkpoint is None:
        return 0
    if not is_verified(connection, tables, keys, checkpoint):
        raise CheckpointRefused(
            f"Checkpoint {checkpoint.number} of the audit log cannot be verified with the audit keys, so no further "
            "one is written. If the key was rotated on another node, copy its audit key file to this one. Otherwise, "
            "verify the audit log."
        )
    return int(json.loads(checkpoint.content)["last"])


def is_verified(connection: Connection, tables: AuditTables, keys: AuditKeys, checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint of the table is as it was written, after the one before it."""
    try:
        return checkpoint.is_authentic(keys, _link_before(connection, tables, checkpoint.number))
    except MALFORMED:
        return False


def _link_before(connection: Connection, tables: AuditTables, number: int) -> str:
    """Return the link of the checkpoint before the one with a number, which may be deleted."""
    column = tables.checkpoints.c
    link = connection.scalar(select(column.link).where(column.number == number - 1))
    if link is not None or number == 1:
        return link or ""
    boundary = last_checkpoint(connection, tables, PRUNE)
    return "" if boundary is None else str(json.loads(boundary.content)["checkpoint"][1])


def _rows(connection: Connection, tables: AuditTables, ids: Any) -> Mapping[str, Sequence[Any]]:
    """Return `[sequence, link, time]` of rows, by writer."""
    columns = tables.events.c
    rows: dict[str, Sequence[Any]] = {}
    remaining = iter(ids)
    while some := list(islice(remaining, _LOOKUPS)):
        query = select(columns.writer, columns.sequence, columns.link, columns.time).where(columns.id.in_(some))
        rows |= {writer: head for writer, *head in connection.execute(query)}
    return rows
