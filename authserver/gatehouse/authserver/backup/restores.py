"""Notices that the database was restored from a backup, and revokes what the backup cannot know to be revoked.

Every revocation commits together with an audit event. So a database that holds the newest event which was ever seen
also holds every revocation before it. Each node names that event in a small file outside the database, the restore
mark. A database without the event was restored, or is another one, and the server does not start with it. An import of
a backup needs no mark: the import itself leaves a row. So does a server that runs while its database is restored,
because the event of the mark can be pruned before the next start. See docs/decisions/0022.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.orm import Session

from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ClientRow, SigningKeyRow, UnacceptedRestoreRow, audit_event, audit_tables
from gatehouse.authserver.keys.rotation import Rotation
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.tokens.reservations import ensure_list
from gatehouse.authserver.tokens.status_lists import close_lists
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.audit.ids import newest_id
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.audit.pruning import PruningRefused, authentic_pruned
from gatehouse.shared.service.database import sqlite_path
from gatehouse.shared.service.files import replace_file

FILE_NAME = "restore-mark.json"

log = logging.getLogger(__name__)


class Mark(NamedTuple):
    """The newest audit event that a node has seen."""

    event: int
    """The id of its row."""
    writer: str
    sequence: int
    time: int
    """Milliseconds since the epoch."""


_MEMBERS: Final[dict[str, type]] = {"event": int, "writer": str, "sequence": int, "time": int}
"""The JSON members of the file."""


@dataclass(frozen=True, slots=True)
class Restore:
    """A restored database, and between which times what was recorded is missing in it, in seconds since the epoch."""

    since: int | None
    """None: the database holds no event."""
    until: int | None
    """None: nothing tells until when the lost database was used."""

    def __str__(self) -> str:
        since = "" if self.since is None else f" from {iso_time(self.since)}"
        until = "" if self.until is None else f" until {iso_time(self.until)}"
        return (
            f"The database was restored from a backup: it lacks what was recorded{since}{until or ' on'}. Whatever was "
            "revoked, disabled or removed in that time would be accepted again. Repeat those changes, and run: "
            "authserver restore accept"
        )


class RestoreMark:
    """The restore mark of a node."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self.path = settings.restore_mark or settings.keys_dir / FILE_NAME
        database_file = sqlite_path(settings.database)
        self.is_beside_database = database_file is not None and database_file.parent in self.path.absolute().parents
        """Whether a copy of the folder of an SQLite database would have the file too."""
        self._audit_keys = settings.audit_keys
        self._written: Mark | None = None
        self._reported = False

    def find_restore(self) -> Restore | None:
        """Return what is missing in the database if it was restored and the restore is not accepted yet.

        Raises:
            CommandRefused: the file is not a restore mark.
            InvalidSettings: the audit keys are needed to tell, and cannot be used.
            OSError, SQLAlchemyError: the file or the database cannot be read.
        """
        mark = self._read()
        with self._database.read() as session:
            exported_at = session.scalar(select(func.min(UnacceptedRestoreRow.exported_at)))
            connection = session.connection()
            if mark is None or self._holds(connection, mark) or _accepted_since(connection, mark.time):
                return None if exported_at is None else Restore(exported_at, None)
            return _restore_before(connection, mark)

    def require_no_restore(self) -> None:
        """Refuse a restored database. Raises CommandRefused, and what `find_restore` raises."""
        if (restore := self.find_restore()) is not None:
            raise CommandRefused(str(restore))

    def update(self) -> None:
        """Write the newest event to the file. Every process of every node does this every ten seconds.

        A database that was restored meanwhile is reported in the log, and the mark stays. A row in the database stops
        the next start of every node, also after what follows the restored backup was pruned.

        Raises:
            CommandRefused, InvalidSettings, SQLAlchemyError: as `find_restore`.
        """
        with self._database.read() as session:
            connection = session.connection()
            newest = _newest(connection)
            if newest is None or newest == self._written:
                return
            mark, missing = self._read(), None
            behind = mark is None or mark.event < newest.event
            if mark is not None and not self._holds(connection, mark):
                behind = _accepted_since(connection, mark.time)
                missing = None if behind else mark
        if missing is not None:
            self._report("the database lacks events that this node has seen: was it restored from a backup?")
            self._note_restore(missing)
            return
        if behind:
            self._write(newest)
        self._written = newest

    def replace(self) -> None:
        """Write the newest event to the file, whatever it holds: an admin has decided to use this database.

        After `init` of an empty database, the file tells its backup from the one of another installation. A mark of
        the future, which a wrong clock leaves behind, is replaced too.
        """
        with self._database.read() as session:
            newest = _newest(session.connection())
        if newest is not None:
            self._write(newest)

    def _read(self) -> Mark | None:
        try:
            document = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            members = parse_json(document)
        except InvalidJson:
            members = None
        if not isinstance(members, dict) or {name: type(value) for name, value in members.items()} != _MEMBERS:
            raise CommandRefused(
                f"{self.path} is not a restore mark. If the database was restored from a backup, run: authserver "
                "restore accept; otherwise delete the file."
            )
        return Mark(**members)

    def _holds(self, connection: Connection, mark: Mark) -> bool:
        """Tell whether the database holds the event, or held it until it was pruned."""
        columns = audit_event.c
        row = connection.execute(select(columns.writer, columns.sequence).where(columns.id == mark.event)).first()
        if row is not None:
            return (row.writer, row.sequence) == (mark.writer, mark.sequence)
        # A backup can have been pruned too. Only a deletion that reached the time of the event explains its absence.
        try:
            pruned = authentic_pruned(connection, audit_tables, AuditKeys.read(self._audit_keys))
        except PruningRefused:
            return False
        last_pruned, *_ = pruned.writers.get(mark.writer, (mark.sequence,))
        newest = connection.scalar(select(func.max(columns.id))) or 0
        # Ids only grow, and the newest event is never pruned.
        return mark.time < pruned.before and mark.sequence <= last_pruned and mark.event < newest

    def _note_restore(self, mark: Mark) -> None:
        """Add the row that stops the start, unless there is one or an admin has accepted the restore meanwhile."""
        with self._database.write() as session:
            connection = session.connection()
            noted = session.scalar(select(func.count()).select_from(UnacceptedRestoreRow))
            if not noted and not _accepted_since(connection, mark.time):
                session.add(UnacceptedRestoreRow(exported_at=_restore_before(connection, mark).since or 0))

    def _write(self, mark: Mark) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self.path, json.dumps(mark._asdict()).encode("ascii"))
        except OSError as error:
            self._report(f"{self.path} cannot be written ({error.strerror}): a restored backup would not be noticed")

    def _report(self, problem: str) -> None:
        """Log the first problem of the process."""
        if not self._reported:
            self._reported = True
            log.error("restore mark: %s", problem)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What `accept_restore` revoked."""

    revoked_keys: Sequence[str]
    disabled_clients: int


def accept_restore(
    session: Session, admin: Administrator, rotation: Rotation, restore: Restore | None, *, disable_clients: bool
) -> Accepted:
    """Revoke every signing key, and with it every token, and let servers start with the database.

    Indices of the existing status lists are not used again: the lost database may have reserved more of them. `restore`
    goes into the audit log.

    Raises:
        CommandRefused: no signing key or pepper decrypts.
    """
    # The active key last: with it, exactly one key is created.
    order = (SigningKeyRow.state == "active", SigningKeyRow.created_at)
    kids = session.scalars(select(SigningKeyRow.kid).order_by(*order)).all()
    for kid in kids:
        rotation.revoke(session, kid)
    close_lists(session)
    ensure_list(session.connection(), admin.now())
    enabled = select(ClientRow.client_id).where(ClientRow.disabled.is_(False)).order_by(ClientRow.client_id)
    clients = session.scalars(enabled).all() if disable_clients else []
    for client_id in clients:
        set_disabled(session, admin, client_id, disabled=True)
    session.execute(delete(UnacceptedRestoreRow))
    lost: dict[str, Any] = {} if restore is None else {"since": restore.since, "until": restore.until}
    admin.record(
        session, AuditAction.INSTALLATION_RESTORE, rotation.sealed_keys.issuer, disabled_clients=len(clients), **lost
    )
    return Accepted(kids, len(clients))


def _newest(connection: Connection) -> Mark | None:
    columns = audit_event.c
    # With an id that the database has not assigned, an altered event would stay the newest forever.
    is_newest = columns.id == newest_id(connection, audit_event)
    query = select(columns.id, columns.writer, columns.sequence, columns.time).where(is_newest)
    row = connection.execute(query).first()
    return None if row is None else Mark(*row)


def _restore_before(connection: Connection, mark: Mark) -> Restore:
    """Return what is missing in a database without the event of a mark."""
    # Not the newest event, which an admin may have caused after the restore.
    since = connection.scalar(select(func.max(audit_event.c.time)).where(audit_event.c.time < mark.time))
    return Restore(None if since is None else since // 1000, mark.time // 1000)


def _accepted_since(connection: Connection, milliseconds: int) -> bool:
    """Tell whether an admin has accepted a restore since, perhaps on another node."""
    columns = audit_event.c
    accepted = select(columns.id).where(
        columns.time >= milliseconds, columns.action == str(AuditAction.INSTALLATION_RESTORE)
    )
    return connection.execute(accepted.limit(1)).first() is not None
