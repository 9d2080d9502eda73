"""Follows the audit log: events in the order of their ids, each once, as they are committed.

A collector resumes at a cursor, the id of the last event that it has. So no event may appear below an id that was
passed. On SQLite, none can: one transaction writes at a time. PostgreSQL assigns ids before the commit, and the
transaction with the lower id may commit last. A gap in the ids is therefore passed only when no transaction can fill it
any more: all that wrote to the table when the gap was seen have ended. An event with an id that the database has not
assigned was altered. It is reported and not passed, because all later ones have lower ids.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table, and_, func, select, text, true
from sqlalchemy.exc import SQLAlchemyError

from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.audit.events import event_conditions
from gatehouse.shared.service.audit.ids import highest_assigned_id, newest_id
from gatehouse.shared.service.cli import Refusal
from gatehouse.shared.service.database import Database
from gatehouse.shared.service.failures import explain_database_failure
from gatehouse.shared.service.files import replace_file
from gatehouse.shared.service.postgresql import STATEMENT_LIMIT

BATCH: Final = 500
"""Events of one read."""

TRANSACTION_LIMIT: Final = 12.0 * STATEMENT_LIMIT
"""Seconds after which a gap is passed in any case. A transaction that records events has at most a few statements, each
with its limit. One that is open for longer belongs to a host that is gone, and PostgreSQL may keep it for hours."""

_CURSOR: Final = re.compile("[0-9]{1,18}", re.ASCII)

_WRITERS: Final = text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND relation = to_regclass(:table) "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND mode = 'RowExclusiveLock' AND granted"
)
"""The open transactions that have begun to write to a table. An INSERT locks its table before it assigns ids."""


class _Gap(NamedTuple):
    """Ids that a transaction may still fill."""

    until: int
    """The lowest id that is known to follow the gap."""
    writers: frozenset[str]
    """The transactions that were open when the gap was seen."""
    deadline: float


class Following:
    """Reads the events that follow a cursor."""

    def __init__(
        self,
        database: Database,
        table: Table,
        cursor: int,
        *,
        report: Callable[[str], object],
        monotonic: Callable[[], float] = time.monotonic,
        **filters: Any,
    ) -> None:
        """Follow the events after `cursor`. `report` is told what an operator has to know.

        `filters` are the keyword arguments of `event_conditions`.
        """
        self.cursor = cursor
        """The id of the last event that was read, whether it matched or not."""
        self._database = database
        self._report = report
        self._monotonic = monotonic
        self._table = table
        # Every event is read, because a gap in the ids is seen only in all of them.
        matches = and_(true(), *event_conditions(table, **filters)).label("matches")
        self._query = select(table, matches).order_by(table.c.id).limit(BATCH)
        self._gap: _Gap | None = None
        self._final = 0
        """Up to this id, no further event can appear."""
        self._outage = False
        self._is_altered = False

    def read(self) -> tuple[list[Mapping[str, Any]], bool]:
        """Return the next events that match, and whether more may follow at once.

        Reports an outage of the database once, and returns no events until it ends.

        Raises:
            Refusal: the log ends before the cursor.
        """
        try:
            with self._database.connect() as connection:
                rows = self._next_rows(connection)
        except SQLAlchemyError as error:
            if not self._outage:
                self._report(f"{explain_database_failure(error)} Waiting for it.")
            self._outage = True
            return [], False
        finally:
            if self._database.engine.dialect.name == "sqlite":
                # An open connection would go on reading a file that has been replaced.
                self._database.close()
        if self._outage:
            self._report("The database answers again.")
        self._outage = False
        if rows:
            self.cursor = rows[-1]["id"]
        return [row for row in rows if row["matches"]], len(rows) == BATCH

    def _next_rows(self, connection: Connection) -> Sequence[Mapping[str, Any]]:
        rows = self._rows(connection)
        if not rows:
            require_cursor(connection, self._table, self.cursor)
            return rows
        if connection.dialect.name == "sqlite":
            return rows
        if len(self._complete(rows)) == len(rows):
            self._gap = None
            return rows
        self._examine_gap(connection, rows[-1]["id"])
        # What committed before the transactions were listed is visible only now.
        return self._complete(self._rows(connection))

    def _rows(self, connection: Connection) -> Sequence[Mapping[str, Any]]:
        query = self._query.where(self._table.c.id > self.cursor)
        rows = [dict(row) for row in connection.execute(query).mappings()]
        assigned = highest_assigned_id(connection, self._table) if rows else 0
        followed = [row for row in rows if row["id"] <= assigned]
        if len(followed) < len(rows) and not self._is_altered:
            self._is_altered = True
            self._report(
                f"The event with the id {rows[len(followed)]['id']} is omitted: the database has not assigned this id, "
                "so it was altered. Verify the audit log. Events with the ids that the database assigns are followed."
            )
        return followed

    def _complete(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Return the rows before the first gap that may still be filled."""
        last = self.cursor
        for position, row in enumerate(rows):
            if row["id"] > max(last, self._final) + 1:
                return rows[:position]
            last = row["id"]
        return rows

    def _examine_gap(self, connection: Connection, seen: int) -> None:
        """Find out whether a gap below the id `seen` can still be filled."""
        writers = frozenset(connection.scalars(_WRITERS, {"table": self._table.name}))
        now = self._monotonic()
        if self._gap is None:
            self._gap = _Gap(seen, writers, now + TRANSACTION_LIMIT)
        open_still = self._gap.writers & writers
        if open_still and now < self._gap.deadline:
            return
        if open_still:
            self._report(
                f"A transaction has been open for more than {TRANSACTION_LIMIT:.0f} s. "
                f"If it still records events below the id {self._gap.until}, they are missing here."
            )
        self._final, self._gap = self._gap.until, None


def cursor_before(connection: Connection, table: Table, since: float) -> int:
    """Return the cursor after which every event since a time follows. `since` is seconds since the epoch."""
    newest = newest_id(connection, table)
    matches = (*event_conditions(table, since=since), table.c.id <= newest)
    first = connection.scalar(select(func.min(table.c.id)).where(*matches))
    return newest if first is None else first - 1


def require_cursor(connection: Connection, table: Table, cursor: int) -> None:
    """Refuse a cursor beyond the newest event: events with ids up to it would never be followed. Raises Refusal."""
    if cursor > (newest := newest_id(connection, table)):
        raise Refusal(
            f"The cursor {cursor} is beyond the newest event, {newest}. It belongs to another database, this one was "
            "restored from a backup, or ids of events were altered. To follow it, start without a cursor, or with "
            "--after 0 for the whole log."
        )


def require_primary(connection: Connection) -> None:
    """Refuse a standby of PostgreSQL, which does not show the open transactions of its primary. Raises Refusal."""
    if connection.dialect.name == "postgresql" and connection.scalar(text("SELECT pg_is_in_recovery()")):
        raise Refusal("This database is a standby, where events can be missed. Follow the audit log on its primary.")


def parse_cursor(value: str) -> int:
    """Read a cursor. Raises ValueError."""
    if _CURSOR.fullmatch(value) is None:
        raise ValueError(f"not a cursor: {quoted(value)}")
    return int(value)


def read_cursor_file(path: Path) -> int | None:
    """Return the cursor in a file, or None if there is no file. Raises Refusal, OSError."""
    try:
        with path.open("rb") as file:
            return parse_cursor(file.read(64).decode("ascii", "replace").strip())
    except FileNotFoundError:
        return None
    except ValueError:
        raise Refusal(f"{path} has no cursor. Name another file, or delete it and begin again.") from None


def write_cursor_file(path: Path, cursor: int) -> None:
    """Write a cursor to a file. Raises OSError."""
    replace_file(path, f"{cursor}\n".encode())
