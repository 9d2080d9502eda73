"""Writes an export: a consistent snapshot of the database, row by row."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import BinaryIO

from sqlalchemy import Connection, Table, select

from gatehouse.authserver.backup.format import MAX_LINE, Header, dump, dump_row, dump_trailer
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import Base
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.database import SNAPSHOT

BATCH = 500
"""Rows that are held in memory."""

Progress = Callable[[int, str], None]
"""Called with how many rows of a table are done, and the name of the table."""


class Part(Enum):
    """When a table is exported."""

    ALWAYS = "always"
    KEYS = "with the keys"
    """Private material, though sealed, and the digests that are useless without it."""
    AUDIT = "unless omitted"
    NEVER = "never"
    """Rows about the processes that use this database."""


PART_OF: Mapping[str, Part] = {
    "audit_checkpoint": Part.AUDIT,
    "audit_event": Part.AUDIT,
    "client": Part.ALWAYS,
    "client_grant": Part.ALWAYS,
    "client_key": Part.ALWAYS,
    "client_secret": Part.KEYS,
    "heartbeat": Part.NEVER,
    "lease": Part.NEVER,
    "pepper": Part.KEYS,
    "resource": Part.ALWAYS,
    "resource_credential": Part.KEYS,
    "resource_scope": Part.ALWAYS,
    "revoked_token": Part.ALWAYS,
    "signing_key": Part.KEYS,
    "spent_assertion": Part.ALWAYS,
    "status_block": Part.ALWAYS,
    "status_list": Part.ALWAYS,
    "trust_rule": Part.ALWAYS,
    "trusted_issuer": Part.ALWAYS,
    "unaccepted_restore": Part.NEVER,
}
"""Every table of the schema. A table is exported with all of its columns."""


def exported_tables(*, keys: bool, audit: bool) -> list[Table]:
    """Return the tables of an export, in the order of their rows: referenced tables come first."""
    parts = {Part.ALWAYS, *({Part.KEYS} if keys else ()), *({Part.AUDIT} if audit else ())}
    return [table for table in Base.metadata.sorted_tables if PART_OF[table.name] in parts]


def write_export(
    database: Database,
    file: BinaryIO,
    header: Header,
    record: Callable[[dict[str, int]], None],
    progress: Progress,
) -> dict[str, int]:
    """Write an export. Return the number of rows of each table.

    `record` is called with these numbers and must record the export in the audit log before it returns: only then is
    the last line written, without which the file cannot be imported.

    Raises:
        CommandRefused: a row is longer than the format allows.
        OSError, SQLAlchemyError: the file cannot be written, or the database is unavailable.
    """
    output = _HashingWriter(file)
    output.write(dump(header.to_json()))
    counts = {}
    with _snapshot(database) as connection:
        for table in exported_tables(keys=header.keys, audit=header.audit):
            counts[table.name] = _write_table(connection, table, output, progress)
    record(counts)
    file.write(dump_trailer(counts, output.digest.hexdigest()))
    file.flush()
    return counts


class _HashingWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, line: bytes) -> None:
        self.digest.update(line)
        self._file.write(line)


@contextmanager
def _snapshot(database: Database) -> Iterator[Connection]:
    """Open a transaction that sees the database as of its first query. On SQLite, every transaction does."""
    with database.engine.execution_options(**SNAPSHOT).connect() as connection:
        yield connection


def _write_table(connection: Connection, table: Table, output: _HashingWriter, progress: Progress) -> int:
    query = select(table).order_by(*table.primary_key.columns)
    number = 0
    with connection.execute(query, execution_options={"stream_results": True, "yield_per": BATCH}) as rows:
        for number, row in enumerate(rows.mappings(), start=1):
            line = dump_row(table, dict(row))
            if len(line) > MAX_LINE:
                raise CommandRefused(f"A row of {table.name} is too long. Omit the audit log: --without-audit")
            output.write(line)
            progress(number, table.name)
    return number
