"""Reads an export into an empty database, in one transaction: either everything is imported, or nothing.

Nothing in the file is trusted until its last line has proven it complete and unaltered.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, BinaryIO

from sqlalchemy import Table, func, insert, inspect, select, text
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from gatehouse.authserver.backup.consistency import check_across_rows
from gatehouse.authserver.backup.exporting import BATCH, PART_OF, Part, Progress, exported_tables
from gatehouse.authserver.backup.format import MAX_LINE, Header, dump_trailer, read_row
from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import (
    Base,
    ClientKeyRow,
    ClientRow,
    ClientSecretRow,
    UnacceptedRestoreRow,
)
from gatehouse.authserver.keys.encryption import (
    FILE_NAME,
    SealingKey,
    create_sealing_key,
    has_sealing_key,
    load_sealing_key,
)
from gatehouse.authserver.keys.sealed_keys import decrypt_rows, lock_keys
from gatehouse.authserver.keys.store import ensure_keys
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.tokens.reservations import ensure_list
from gatehouse.authserver.tokens.status_lists import close_lists
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.audit.keys import create_audit_keys
from gatehouse.shared.service.database import sqlite_path


class CorruptExport(CommandRefused):
    """The file was altered or is incomplete. Nothing of it is imported."""

    def __init__(self, line: int, problem: str) -> None:
        problem = problem.rstrip(".")
        super().__init__(
            f"Line {line} of the export: {problem}. Nothing was imported. Export or copy it again: authserver export"
        )


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """A row and its line number in the file."""

    line: int
    table: Table
    values: dict[str, Any]


class ExportReader:
    """Reads a file once, from its beginning."""

    def __init__(self, file: BinaryIO, issuer: str) -> None:
        """Read the header.

        Raises:
            CommandRefused: the file is not an export, or has another format version, schema or issuer.
        """
        self._file = file
        self._line = 0
        self._digest = hashlib.sha256()
        self.header = self._read_header(issuer)
        self._tables = {table.name: table for table in exported_tables(keys=self.header.keys, audit=self.header.audit)}
        self.counts = dict.fromkeys(self._tables, 0)
        """Rows of each table that were read."""

    def rows(self) -> Iterator[ImportedRow]:
        """Yield every row. When the iteration ends, the file is proven complete and unaltered.

        Raises:
            CorruptExport: a line is not as `write_export` writes it, or lines are missing, added, or out of order.
        """
        order = list(self._tables)
        at = 0
        while (members := self._next_row()) is not None:
            name, values = members["table"], members["row"]
            if not isinstance(name, str) or name not in order:
                raise self._corrupt(f"the export has no table {quoted(str(name))}")
            if order.index(name) < at:
                raise self._corrupt(f"a row of {name} comes after rows of {order[at]}")
            if not isinstance(values, dict):
                raise self._corrupt("'row' is not an object")
            at = order.index(name)
            try:
                row = read_row(self._tables[name], values)
            except (CommandRefused, ValueError) as error:
                raise self._corrupt(str(error)) from None
            self.counts[name] += 1
            yield ImportedRow(self._line, self._tables[name], row)

    def _next_row(self) -> dict[str, Any] | None:
        """Return the members of the next line, or None after a correct trailer."""
        line, members = self._next_line()
        if members.keys() == {"table", "row"}:
            self._digest.update(line)
            return members
        if members.keys() != {"rows", "sha256"}:
            raise self._corrupt("is neither a row nor the last line")
        if members["rows"] != self.counts:
            raise self._corrupt("the numbers of rows are not those of the file")
        if line != dump_trailer(self.counts, self._digest.hexdigest()):
            raise self._corrupt("the digest is not that of the file")
        if self._file.read(1):
            raise self._corrupt("the file continues after the last line")
        return None

    def _next_line(self) -> tuple[bytes, dict[str, Any]]:
        self._line += 1
        line = self._file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise self._corrupt(f"is longer than {MAX_LINE} bytes")
        if not line.endswith(b"\n"):
            raise self._corrupt("the file ends here, before its last line")
        try:
            members = parse_json(line)
        except InvalidJson as error:
            raise self._corrupt(str(error)) from None
        if not isinstance(members, dict):
            raise self._corrupt("is not a JSON object")
        return line, members

    def _read_header(self, issuer: str) -> Header:
        line, members = self._next_line()
        self._digest.update(line)
        try:
            return Header.from_json(members, issuer)
        except ValueError as error:
            raise self._corrupt(str(error)) from None

    def _corrupt(self, problem: str) -> CorruptExport:
        return CorruptExport(self._line, problem)


@dataclass(frozen=True, slots=True)
class Imported:
    """The outcome of an import."""

    rows: Mapping[str, int]
    created: Sequence[str]
    """The kids of signing keys that were created because the export held none."""
    without_secret: int
    """The number of clients that need a new secret."""


def import_installation(
    settings: Settings, database: Database, admin: Administrator, reader: ExportReader, progress: Progress
) -> Imported:
    """Turn an empty or missing database into the exported installation, ready to serve.

    Raises:
        CommandRefused: the database is not empty, the sealing key is not the one that the keys were sealed with, or
            the file is corrupt. The database is still empty.
        InvalidSettings: the sealing key or the audit keys cannot be used.
        SchemaMismatch: the database belongs to another program, or to a newer version.
    """
    # Checked before anything is created or migrated.
    if reader.header.keys and not has_sealing_key(settings):
        raise _wrong_sealing_key(settings, "There is no sealing key")
    require_empty(database)
    database.migrate()
    database.require_current()
    if not reader.header.keys:
        create_sealing_key(settings)
    create_audit_keys(settings.audit_keys)
    sealing_key = load_sealing_key(settings)
    with database.write() as session:
        _lock_tables(session)
        _require_no_rows(session, database)
        _insert_all(session, reader, progress)
        check_across_rows(session)
        _advance_sequences(session)
        if reader.header.keys:
            _require_decryptable(session, settings, sealing_key)
        created = ensure_keys(session, sealing_key, settings.issuer, settings.signing_algorithm, admin.clock)
        # The exported installation may have issued tokens with further indices. None of them is issued again.
        close_lists(session)
        ensure_list(session.connection(), admin.now())
        if reader.header.in_use:
            session.add(UnacceptedRestoreRow(exported_at=reader.header.created_at))
        _record(session, settings, admin, reader, created)
        return Imported(reader.counts, created, _count_without_credentials(session))


def require_empty(database: Database) -> None:
    """Refuse a database that holds an installation, whatever its schema. Raises CommandRefused."""
    path = sqlite_path(database.url)
    if path is not None and not path.exists():
        return
    with database.read() as session:
        _require_no_rows(session, database)


def _installation_tables() -> list[Table]:
    """Return the tables whose rows belong to an installation."""
    return [table for table in Base.metadata.sorted_tables if PART_OF[table.name] is not Part.NEVER]


def _require_no_rows(session: Session, database: Database) -> None:
    present = set(inspect(session.connection()).get_table_names())
    for table in _installation_tables():
        if table.name in present and session.execute(select(text("1")).select_from(table).limit(1)).first():
            raise CommandRefused(
                f"The database {database.url.database} is not empty. Set AUTHSERVER_DATABASE_URL to one that is empty "
                "or does not exist yet: the import prepares it, without authserver init."
            )


def _lock_tables(session: Session) -> None:
    """Block other writers until the transaction ends. On SQLite, a writer holds the write lock already."""
    lock_keys(session)
    if session.get_bind().dialect.name == "postgresql":
        names = ", ".join(table.name for table in _installation_tables())
        session.execute(text(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE"))


def _insert_all(session: Session, reader: ExportReader, progress: Progress) -> None:
    for table, rows in groupby(reader.rows(), key=lambda row: row.table):
        done = 0
        while batch := list(islice(rows, BATCH)):
            _insert(session, batch)
            done += len(batch)
            progress(done, table.name)


def _insert(session: Session, batch: Sequence[ImportedRow]) -> None:
    """Insert rows of one table. If the database refuses some, report the first of them."""
    try:
        with session.begin_nested():
            session.execute(insert(batch[0].table), [row.values for row in batch])
    except (IntegrityError, DataError):
        if len(batch) == 1:
            problem = f"the row of {batch[0].table.name} is a duplicate, or refers to a row that is not in the export"
            raise CorruptExport(batch[0].line, problem) from None
        half = len(batch) // 2
        _insert(session, batch[:half])
        _insert(session, batch[half:])


def _advance_sequences(session: Session) -> None:
    """Make the database number new rows after the imported ids. SQLite does so by itself."""
    if session.get_bind().dialect.name != "postgresql":
        return
    for table in exported_tables(keys=True, audit=True):
        if (column := table.autoincrement_column) is not None:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            highest = func.coalesce(func.max(column), 0)
            session.execute(select(func.setval(sequence, highest + 1, False)))


def _require_decryptable(session: Session, settings: Settings, sealing_key: SealingKey) -> None:
    decrypted = decrypt_rows(session, sealing_key, settings.issuer)
    if decrypted.undecryptable:
        raise _wrong_sealing_key(settings, "The keys in the export were sealed with another sealing key")
    if decrypted.undecryptable_rows:
        raise CommandRefused(
            f"These do not decrypt with this sealing key: {', '.join(sorted(decrypted.undecryptable_rows))}. Nothing "
            "was imported. If they are undecryptable in the exported installation too, remove them there (authserver "
            "key list, key revoke) and export again, or export without --with-keys."
        )


def _wrong_sealing_key(settings: Settings, problem: str) -> CommandRefused:
    path = settings.keys_dir / FILE_NAME
    return CommandRefused(
        f"{problem}, and the export holds keys. Nothing was imported. Put the sealing key of the exported installation "
        f"at {path}, mode 0600, or into AUTHSERVER_SEALING_KEY."
    )


def _record(
    session: Session, settings: Settings, admin: Administrator, reader: ExportReader, created: Sequence[str]
) -> None:
    header = reader.header
    admin.record(
        session,
        AuditAction.INSTALLATION_IMPORT,
        settings.issuer,
        created_at=header.created_at,
        keys=header.keys,
        audit=header.audit,
        rows=dict(reader.counts),
    )
    for kid in created:
        admin.record(session, AuditAction.KEY_CREATE, kid, alg=settings.signing_algorithm)


def _count_without_credentials(session: Session) -> int:
    has_secret = select(ClientSecretRow.client_id).where(ClientSecretRow.client_id == ClientRow.client_id).exists()
    has_key = select(ClientKeyRow.client_id).where(ClientKeyRow.client_id == ClientRow.client_id).exists()
    needs_one = ClientRow.token_endpoint_auth_method != WORKLOAD_IDENTITY
    without = select(func.count()).select_from(ClientRow).where(~has_key, ~has_secret, needs_one)
    return session.scalar(without) or 0
