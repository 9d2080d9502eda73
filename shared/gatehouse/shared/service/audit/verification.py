"""Verifies an audit log: that no event and no checkpoint was removed, altered, inserted or moved.

The chains prove what is between their first and their last row, and the checkpoints where they end. Nothing proves
what was recorded after the last checkpoint: such rows can be cut off unseen. The same is true of everything after the
last checkpoint that was kept elsewhere, because those in the database can be cut off together with their rows.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, select

from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.audit.chain import AUTHENTICATED, is_authentic
from gatehouse.shared.service.audit.checkpoints import HEADS, MALFORMED, PRUNE, Checkpoint, last_checkpoint
from gatehouse.shared.service.audit.events import AuditTables, stored_columns
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.audit.pruning import Pruned

_STREAM: Final = {"stream_results": True, "yield_per": 1000}

_MAX_TIME: Final = 253_402_300_800_000
"""Milliseconds since the epoch at the end of the year 9999."""


class Verification(NamedTuple):
    """The outcome."""

    events: int
    """How many were read."""
    checkpoints: int
    finding: str | None
    """The first thing that is wrong, in a sentence; None if nothing is."""


class _Finding(Exception):
    """What is wrong."""


class _Head(NamedTuple):
    """A row that a checkpoint lists as the last one of its writer."""

    sequence: int
    link: str
    time: int
    checkpoint: int
    """The number of the checkpoint."""
    last: int
    """The highest id that the checkpoint has read."""


def verify_audit(
    connection: Connection,
    tables: AuditTables,
    keys: AuditKeys,
    *,
    external: Sequence[Mapping[str, Any]] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Verification:
    """Verify an audit log while servers write to it.

    Args:
        connection: sees one snapshot of the database, as those of an engine with `database.SNAPSHOT` do.
        tables: the tables.
        keys: the keys of the program that writes the log.
        external: checkpoints that were kept elsewhere, each with the members `checkpoint` (its number) and `link` of
            the log line "audit checkpoint".
        progress: called after each event with the number of events that were read so far.

    Raises:
        SQLAlchemyError: the database failed.
    """
    verifier = _Verifier(connection, tables, keys)
    finding = None
    try:
        verifier.note_external(external)
        verifier.verify_checkpoints()
        verifier.verify_events(progress)
        verifier.verify_ends()
    except _Finding as found:
        finding = str(found)
    return Verification(verifier.events, verifier.checkpoints, finding)


class _Verifier:
    """Memory grows with the number of writers, not of events."""

    def __init__(self, connection: Connection, tables: AuditTables, keys: AuditKeys) -> None:
        self.events = self.checkpoints = 0
        self._connection = connection
        self._tables = tables
        self._keys = keys
        self._external: dict[int, str] = {}
        self._pruned = Pruned()
        self._heads: dict[str, _Head] = {}
        self._ends: dict[str, Sequence[Any]] = {}
        """`sequence, link` of the last row of each writer that was read."""
        self._newest = 0
        """The highest id of an event."""
        self._read_until = (0, 0)
        """The highest id that the last checkpoint has read, and its number."""
        self._closings: dict[str, int] = {}
        """The number of the first checkpoint after the expiry of each retired key."""

    def note_external(self, external: Sequence[Mapping[str, Any]]) -> None:
        for each in external:
            number, link = int(each["checkpoint"]), str(each["link"])
            if self._external.setdefault(number, link) != link:
                raise _Finding(
                    f"Checkpoint {number} was kept elsewhere in two versions. Checkpoints were cut off and written "
                    "again, or the database was restored from a backup."
                )

    def verify_checkpoints(self) -> None:
        try:
            # Believed only if the chain that begins with it leads to it.
            self._pruned = Pruned.read(last_checkpoint(self._connection, self._tables, PRUNE))
            number, link = int(self._pruned.checkpoint[0]), str(self._pruned.checkpoint[1])
        except MALFORMED:
            raise _Finding("The last checkpoint that says what was pruned was altered.") from None
        self._require_external(number, link)
        checkpoint = None
        for checkpoint in self._read_checkpoints():
            number += 1
            if checkpoint.number != number:
                raise _Finding(f"Checkpoint {number} is missing: it was removed before checkpoint {_name(checkpoint)}.")
            self._require_key(checkpoint.kid, f"Checkpoint {_name(checkpoint)}")
            if not checkpoint.is_authentic(self._keys, link):
                raise _Finding(f"Checkpoint {_name(checkpoint)} was altered.")
            self._require_external(number, checkpoint.link)
            self._verify_time(checkpoint)
            self._note_heads(checkpoint)
            link = checkpoint.link
            self.checkpoints += 1
        if missing := sorted(each for each in self._external if each > number):
            end = "there is none" if checkpoint is None else f"the last one is {_name(checkpoint)}"
            raise _Finding(
                f"Checkpoint {missing[0]}, which was kept elsewhere, is missing: {end}. Checkpoints were cut off, or "
                "the database was restored from a backup."
            )

    def _read_checkpoints(self) -> Iterator[Checkpoint]:
        table = self._tables.checkpoints
        with self._connection.execute(select(table).order_by(table.c.number), execution_options=_STREAM) as rows:
            for row in rows:
                yield Checkpoint(*row)

    def _require_external(self, number: int, link: str) -> None:
        if self._external.get(number, link) != link:
            raise _Finding(f"Checkpoint {number} is not the one that was kept elsewhere: the log was written again.")

    def _require_key(self, kid: object, what: str) -> None:
        if kid not in self._keys:
            raise _Finding(
                f"{what} has the key {_shown(kid)}, which is not in the audit key file: the file is not the right one, "
                "or the row was altered."
            )

    def _verify_time(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint under an expired key, and note the keys that have expired."""
        expired = self._keys.expired(checkpoint.time)
        if checkpoint.kid in self._closings or checkpoint.kid in expired:
            raise _Finding(f"Checkpoint {_name(checkpoint)} was written {self._after_expiry(checkpoint.kid)}.")
        if checkpoint.kind == HEADS:
            self._closings = dict.fromkeys(expired, checkpoint.number) | self._closings

    def _after_expiry(self, kid: str) -> str:
        return (
            f"after its key {kid} had expired ({_when(self._keys.expiry(kid))}): it was forged with this key, or a "
            "server did not read the new key in time"
        )

    def _note_heads(self, checkpoint: Checkpoint) -> None:
        if checkpoint.kind != HEADS:
            return
        content = json.loads(checkpoint.content)
        self._read_until = (content["last"], checkpoint.number)
        for writer, (sequence, link, time) in content["heads"].items():
            if writer not in self._heads or self._heads[writer].sequence < sequence:
                self._heads[writer] = _Head(sequence, link, time, checkpoint.number, content["last"])

    def verify_events(self, progress: Callable[[int], None]) -> None:
        columns = self._tables.events.c
        values = stored_columns(self._tables.events, AUTHENTICATED)
        query = select(columns.id, columns.link, *values).order_by(columns.id)
        with self._connection.execute(query, execution_options=_STREAM) as rows:
            for id_, link, *row in rows:
                self._verify_event(id_, link, row, rows)
                self._newest = id_
                self.events += 1
                progress(self.events)

    def _verify_event(self, id_: int, link: str, row: Sequence[Any], further: Iterable[Sequence[Any]]) -> None:
        writer, sequence, kid = row[:3]
        end, previous = self._end(writer)
        if sequence != end + 1:
            raise _Finding(_misplaced(id_, row, end, further))
        if kid not in self._keys:
            self._require_key(kid, _event(id_, row))
        if not is_authentic(self._keys, previous, link, row):
            raise _Finding(f"{_event(id_, row)} was altered.")
        self._verify_age(id_, row)
        self._verify_head(id_, link, row)
        self._ends[writer] = (sequence, link)

    def _verify_head(self, id_: int, link: str, row: Sequence[Any]) -> None:
        """Refuse a row that is not as it was when a checkpoint listed it."""
        head = self._heads.get(row[0])
        if head is None or row[1] > head.sequence:
            return
        if row[1] == head.sequence and head.link != link:
            raise _Finding(
                f"{_event(id_, row)} is not the one that checkpoint {head.checkpoint} lists: it was replaced."
            )
        # No link covers the id. With a high one, a row would hide later rows from those who remember the highest id.
        if id_ > head.last:
            raise _Finding(
                f"{_event(id_, row)} had another id when checkpoint {head.checkpoint} read the events up to the id "
                f"{head.last}: its id was altered."
            )

    def _verify_age(self, id_: int, row: Sequence[Any]) -> None:
        """Refuse an authentic row that was deleted before, or that the holder of a retired key can have written."""
        writer, sequence, kid, time = row[:4]
        if time < self._pruned.complete and writer not in self._pruned.writers:
            raise _Finding(
                f"{_event(id_, row)} is of a time that was pruned: it was inserted again, or the clock of its server "
                "was wrong."
            )
        if (expiry := self._keys.expiry(kid)) is None:
            return
        head = self._heads.get(writer)
        # The first checkpoint after the expiry may be deleted if all rows of before were due.
        closing = 0 if expiry <= self._pruned.complete else self._closings.get(kid)
        if closing is None:
            # The next checkpoint lists what has been written until now.
            is_valid = time < expiry
        else:
            is_valid = head is not None and head.sequence >= sequence and head.checkpoint <= closing
        if not is_valid:
            raise _Finding(f"{_event(id_, row)} was written {self._after_expiry(kid)}.")

    def _end(self, writer: str) -> tuple[int, str]:
        """Return the sequence and the link of the last row of a writer, read or pruned."""
        sequence, link, *_ = self._ends.get(writer) or self._pruned.writers.get(writer) or (0, "")
        return sequence, link

    def verify_ends(self) -> None:
        for writer, head in self._heads.items():
            end, _ = self._end(writer)
            due = head.time < self._pruned.before
            if not due and self._pruned.writers.get(writer, (0,))[0] >= head.sequence:
                raise _Finding(
                    f"Event {head.sequence} of writer {_shown(writer)} was pruned before it was due: checkpoint "
                    f"{head.checkpoint} lists it, of {_when(head.time)}."
                )
            if end >= head.sequence or (end == 0 and due):
                continue
            raise _Finding(
                f"{_missing(writer, end + 1, head.sequence)}: cut off. Checkpoint {head.checkpoint} lists the last "
                f"one, of {_when(head.time)}."
            )
        last, number = self._read_until
        # The newest row is never pruned.
        if self._newest < last:
            raise _Finding(
                f"The highest id of an event is {self._newest}, but checkpoint {number} has read the events up to the "
                f"id {last}: ids were altered."
            )


def _misplaced(id_: int, row: Sequence[Any], end: int, further: Iterable[Sequence[Any]]) -> str:
    """Say what is wrong with a row whose number does not follow that of its writer's row before it."""
    writer, sequence, _, time = row[:4]
    here = f"where event {_shown(sequence)} (id {id_}, {_when(time)}) stands"
    if isinstance(sequence, int) and sequence > end:
        later = {other[3] for other in further if other[2] == writer}
        if end + 1 not in later:
            return f"{_missing(writer, end + 1, sequence - 1)} {here}: removed."
    return f"Event {end + 1} of writer {_shown(writer)} is not {here}: events were moved or inserted."


def _event(id_: int, row: Sequence[Any]) -> str:
    writer, sequence, _, time = row[:4]
    return f"Event {_shown(sequence)} of writer {_shown(writer)} (id {id_}, {_when(time)})"


def _missing(writer: object, first: int, last: int) -> str:
    if first == last:
        return f"Event {first} of writer {_shown(writer)} is missing"
    return f"Events {first} to {last} of writer {_shown(writer)} are missing"


def _name(checkpoint: Checkpoint) -> str:
    return f"{_shown(checkpoint.number)} ({_when(checkpoint.time)})"


def _shown(value: object) -> str:
    """Return a value that may have been altered, to print."""
    return quoted(str(value))


def _when(time: object) -> str:
    """Return the time of a row, which may have been altered."""
    if isinstance(time, int) and 0 <= time < _MAX_TIME:
        return iso_time(time / 1000, "milliseconds")
    return f"time {_shown(time)}"
