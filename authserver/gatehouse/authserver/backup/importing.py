"""Reads an export into an empty database, in one transaction: all of it is there in the end, or nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from sqlalchemy import func, insert, inspect, select, text
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.backup.exporting import PROGRESS_EVERY, Progress
from gatehouse.authserver.backup.reading import CorruptExport, ExportReader, ReadRow
from gatehouse.authserver.backup.tables import tables_of, tables_that_matter
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import (
    ClientKeyRow,
    ClientRow,
    ClientSecretRow,
    ResourceScopeRow,
    StatusBlockRow,
    StatusListRow,
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
from gatehouse.authserver.tokens.status_lists import close_lists, ensure_list
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit import AuditAction
from gatehouse.shared.service.database import sqlite_path

_AT_ONCE = 500
"""Rows that are held in memory, and sent together."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What an import did."""

    rows: Mapping[str, int]
    created: Sequence[str]
    """The signing keys that were made, because none came."""
    without_secret: int
    """Clients that have to be given a new secret."""


def import_installation(
    settings: Settings, database: Database, admin: Administrator, reader: ExportReader, progress: Progress
) -> Arrival:
    """Make an empty database, or none at all, the installation that an export is of, ready to serve.

    Raises:
        Refused: the database is not empty, the sealing key is not the one that the keys were sealed with, or the file
            is damaged. The database is empty still.
        InvalidSettings: the sealing key cannot be used.
        SchemaMismatch: the database is another program's, or of a newer version.
    """
    # Before anything is made or migrated.
    if reader.header.keys and not has_sealing_key(settings):
        raise _wrong_sealing_key(settings, "There is no sealing key")
    require_empty(database)
    database.migrate()
    database.require_current()
    if not reader.header.keys:
        create_sealing_key(settings)
    sealing_key = load_sealing_key(settings)
    with database.write() as session:
        _keep_others_out(session)
        _require_no_rows(session, database)
        _insert_all(session, reader, progress)
        _check_together(session)
        _continue_numbering(session)
        if reader.header.keys:
            _require_decryptable(session, settings, sealing_key)
        created = ensure_keys(session, sealing_key, settings.issuer, settings.signing_algorithm, admin.clock)
        # The place that was exported may have gone on to give indices to tokens. None of them is given again.
        close_lists(session)
        ensure_list(session, admin.now())
        _record(session, settings, admin, reader, created)
        return Arrival(reader.counts, created, _without_secret(session))


def require_empty(database: Database) -> None:
    """Refuse a database that holds an installation, of whatever schema. Raises Refused."""
    path = sqlite_path(database.url)
    if path is not None and not path.exists():
        return
    with database.read() as session:
        _require_no_rows(session, database)


def _require_no_rows(session: Session, database: Database) -> None:
    present = set(inspect(session.connection()).get_table_names())
    for table in tables_that_matter():
        if table.name in present and session.execute(select(text("1")).select_from(table).limit(1)).first():
            raise Refused(
                f"The database {database.url.database} is not empty. Name one in AUTHSERVER_DATABASE_URL that is, "
                "or that is not there yet: the import makes it ready, without authserver init."
            )


def _keep_others_out(session: Session) -> None:
    """Let nobody else write until the transaction ends. On SQLite, a writer has the lock since it began."""
    lock_keys(session)
    if session.get_bind().dialect.name == "postgresql":
        names = ", ".join(table.name for table in tables_that_matter())
        session.execute(text(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE"))


def _insert_all(session: Session, reader: ExportReader, progress: Progress) -> None:
    for table, rows in groupby(reader.rows(), key=lambda row: row.table):
        done = 0
        while batch := list(islice(rows, _AT_ONCE)):
            _insert(session, batch)
            done += len(batch)
            if done % PROGRESS_EVERY == 0:
                progress(table.name, done)


def _insert(session: Session, batch: Sequence[ReadRow]) -> None:
    """Insert rows of one table; of those that the database refuses, name the first."""
    try:
        with session.begin_nested():
            session.execute(insert(batch[0].table), [row.values for row in batch])
    except (IntegrityError, DataError):
        if len(batch) == 1:
            problem = f"the row of {batch[0].table.name} is there twice, or refers to what is not in the export"
            raise CorruptExport(batch[0].line, problem) from None
        half = len(batch) // 2
        _insert(session, batch[:half])
        _insert(session, batch[half:])


def _check_together(session: Session) -> None:
    """Judge what rows are only right or wrong together, and what no constraint of the database holds."""
    rows = session.execute(select(ResourceScopeRow.resource, ResourceScopeRow.scope, ResourceScopeRow.implies)).all()
    scopes = {(row.resource, row.scope) for row in rows}
    for resource, scope, implies in rows:
        if any((resource, implied) not in scopes for implied in implies):
            raise Refused(f"In the export, {scope} of {resource} implies what is no scope there. Nothing was imported.")
    of_list = StatusListRow.list_id == StatusBlockRow.list_id
    is_free = StatusBlockRow.start + StatusBlockRow.size > StatusListRow.next_index
    if session.scalar(select(StatusBlockRow.list_id).join(StatusListRow, of_list).where(is_free).limit(1)):
        raise Refused("In the export, indices of a status list belong to a client and are free. Nothing was imported.")


def _continue_numbering(session: Session) -> None:
    """Let the database number on behind the ids that came. SQLite does so by itself."""
    if session.get_bind().dialect.name != "postgresql":
        return
    for table in tables_of(keys=True, audit=True):
        if (column := table.autoincrement_column) is not None:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            highest = func.coalesce(func.max(column), 0)
            session.execute(select(func.setval(sequence, highest + 1, False)))


def _require_decryptable(session: Session, settings: Settings, sealing_key: SealingKey) -> None:
    decrypted = decrypt_rows(session, sealing_key, settings.issuer)
    if decrypted.undecryptable:
        raise _wrong_sealing_key(settings, "The keys in the export were sealed with another sealing key")
    if decrypted.undecryptable_rows:
        raise Refused(
            f"These do not decrypt with this sealing key: {', '.join(sorted(decrypted.undecryptable_rows))}. Nothing "
            "was imported. If they are undecryptable in the exported installation too, remove them there (authserver "
            "key list, key revoke) and export again, or export without --with-keys."
        )


def _wrong_sealing_key(settings: Settings, problem: str) -> Refused:
    path = settings.keys_dir / FILE_NAME
    return Refused(
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


def _without_secret(session: Session) -> int:
    has_secret = select(ClientSecretRow.client_id).where(ClientSecretRow.client_id == ClientRow.client_id).exists()
    has_key = select(ClientKeyRow.client_id).where(ClientKeyRow.client_id == ClientRow.client_id).exists()
    return session.scalar(select(func.count()).select_from(ClientRow).where(~has_key, ~has_secret)) or 0
