"""Writes an export: one consistent picture of the database, row by row."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from sqlalchemy import Connection, Table, select

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.backup.lines import MAX_LINE, Header, dump, dump_row, dump_trailer
from gatehouse.authserver.backup.tables import tables_of
from gatehouse.authserver.db.database import Database
from gatehouse.shared.service.database import READ_ONLY

PROGRESS_EVERY = 100_000
"""Rows of a table after which it is told how far the work is."""

Progress = Callable[[str, int], None]
"""Is told the name of a table, and how many of its rows are done."""

_AT_ONCE = 500
"""Rows that are held in memory."""

_ONE_PICTURE = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


def write_export(
    database: Database,
    file: BinaryIO,
    header: Header,
    record: Callable[[dict[str, int]], None],
    progress: Progress,
) -> dict[str, int]:
    """Write an export. Return how many rows of each table are in it.

    `record` is told these numbers, and has to have recorded the export when it returns: only then the last line is
    written, without which nobody can import what was written before.

    Raises:
        Refused: a row is longer than a reader would take.
        OSError, SQLAlchemyError: the file cannot be written, or the database is away.
    """
    output = _Digested(file)
    output.write(dump(header.to_json()))
    counts = {}
    with _picture(database) as connection:
        for table in tables_of(keys=header.keys, audit=header.audit):
            counts[table.name] = _write_table(connection, table, output, progress)
    record(counts)
    file.write(dump_trailer(counts, output.digest.hexdigest()))
    file.flush()
    return counts


class _Digested:
    """Writes, and sums up what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, line: bytes) -> None:
        self.digest.update(line)
        self._file.write(line)


@contextmanager
def _picture(database: Database) -> Iterator[Connection]:
    """Open a transaction that sees the database as it is at its first query; on SQLite, every one does."""
    isolated = _ONE_PICTURE if database.engine.dialect.name == "postgresql" else {}
    with database.engine.execution_options(**READ_ONLY, **isolated).connect() as connection:
        yield connection


def _write_table(connection: Connection, table: Table, output: _Digested, progress: Progress) -> int:
    query = select(table).order_by(*table.primary_key.columns)
    number = 0
    with connection.execute(query, execution_options={"stream_results": True, "yield_per": _AT_ONCE}) as rows:
        for number, row in enumerate(rows.mappings(), start=1):
            line = dump_row(table, dict(row))
            if len(line) > MAX_LINE:
                raise Refused(f"A row of {table.name} is too long. Leave the audit log out: --without-audit")
            output.write(line)
            if number % PROGRESS_EVERY == 0:
                progress(table.name, number)
    return number
