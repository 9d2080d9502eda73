"""The sessions of callers at a stateful upstream, in the database, where every worker and node finds the same.

An upstream may keep state of the callers of one session, so no two callers share one. Two workers that open a session
for one caller at the same moment end up with one: the first to insert it wins.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import bindparam, delete, func, inspect, or_, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from gatehouse.resourceserver.db.models import UpstreamSessionRow
from gatehouse.resourceserver.db.request_database import CommitUnknown, RequestDatabase
from gatehouse.resourceserver.upstream.http.session_key import SessionKey
from gatehouse.resourceserver.upstream.upstream import Caller, UpstreamBusy, UpstreamUnavailable
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.settings import InvalidSettings

TOUCH_INTERVAL: Final = 60.0
"""Seconds between two times that a worker writes which sessions it has used."""

IDLE: Final = 150
"""Seconds without use after which no worker has a call in the session: more than two intervals."""

_FORGOTTEN: Final = 86400
"""Seconds without use after which the session of any upstream is removed, also of one that is no longer served."""


@dataclass(frozen=True, slots=True, eq=False)
class Connection:
    """How to speak to the upstream: the protocol version, and the session if the upstream is stateful."""

    protocol_version: str
    session_id: str | None = field(default=None, repr=False)


class Kept(NamedTuple):
    """The session of a caller after one was to be stored."""

    connection: Connection
    """It has another id if another worker was first."""
    ended: Sequence[Connection]
    """Idle sessions of other callers that made room."""


class SharedSession(UpstreamUnavailable):
    """The upstream gave a caller the session of another."""

    def __init__(self) -> None:
        super().__init__("the upstream gave two callers the same session, which the gateway does not use")


class SessionStore:
    """The sessions of all callers, in the database."""

    def __init__(self, database: RequestDatabase, key_file: Path, clock: Clock) -> None:
        """Create it. The key is read when the first session is found or stored."""
        self._database = database
        self._key_file = key_file
        self._clock = clock
        self._read_key: SessionKey | None = None

    @property
    def _key(self) -> SessionKey:
        if self._read_key is None:
            try:
                self._read_key = SessionKey.read(self._key_file)
            except InvalidSettings as error:
                raise UpstreamUnavailable(str(error)) from None
        return self._read_key

    async def find(self, upstream: str, caller: Caller, limit: int) -> Connection | None:
        """Return the session of a caller; None if there is none, and room for one.

        Raises:
            UpstreamBusy: there is none, and there are `limit` of other callers, all in use.
            UpstreamUnavailable: the database or the key cannot be read.
        """

        def read(session: Session) -> Connection | None:
            row = session.get(UpstreamSessionRow, (upstream, *caller))
            if row is not None:
                return self._decrypted(row)
            self._replaceable(session, upstream, limit, lock=False)
            return None

        with _as_unavailable():
            return await self._database.run_read(read)

    async def put(self, upstream: str, caller: Caller, opened: Connection, stale: str | None, limit: int) -> Kept:
        """Store a session, unless the caller has another than the stale one, which ended.

        Args:
            upstream: the digest of the upstream.
            caller: whose session it is.
            opened: the new session.
            stale: the id of the session that it replaces, if any.
            limit: sessions of all callers, at most.

        Raises:
            UpstreamBusy: there are `limit` of other callers, all in use.
            SharedSession: another caller has a session with the same id.
            UpstreamUnavailable: the database or the key cannot be read, or the session was not stored.
        """
        put = partial(self._put, upstream, caller, opened, stale, limit)
        with _as_unavailable():
            try:
                return await self._database.run_write(put)
            except IntegrityError:
                # Another worker inserted a session at the same moment. A new transaction finds it.
                return await self._database.run_write(put)

    def _put(
        self, upstream: str, caller: Caller, opened: Connection, stale: str | None, limit: int, session: Session
    ) -> Kept:
        row = session.get(UpstreamSessionRow, (upstream, *caller), with_for_update=True)
        current = None if row is None else self._decrypted(row)
        if current is not None and current.session_id != stale:
            return Kept(current, ())
        digest = self._key.digest(str(opened.session_id))
        self._require_unshared(session, upstream, caller, digest)
        ended: list[Connection] = []
        if row is None:
            for idle in self._replaceable(session, upstream, limit, lock=True):
                ended += filter(None, [self._decrypted(idle)])
                session.delete(idle)
            row = UpstreamSessionRow(upstream=upstream, client_id=caller.client_id, subject=caller.subject)
            session.add(row)
        row.session = self._key.encrypt(str(opened.session_id), upstream, *caller)
        row.session_digest = digest
        row.protocol_version = opened.protocol_version
        row.created_at = row.last_used_at = int(self._clock())
        return Kept(opened, ended)

    def _require_unshared(self, session: Session, upstream: str, caller: Caller, digest: str) -> None:
        row = UpstreamSessionRow
        of_another = or_(row.client_id != caller.client_id, row.subject != caller.subject)
        same = select(row.client_id).where(row.upstream == upstream, row.session_digest == digest, of_another)
        if session.execute(same).first() is not None:
            raise SharedSession

    def _replaceable(self, session: Session, upstream: str, limit: int, *, lock: bool) -> Sequence[UpstreamSessionRow]:
        """Return the sessions that must end to make room for one: those that were unused for longest.

        On PostgreSQL, sessions that are inserted at the same moment can exceed the limit until the next one is.

        Raises:
            UpstreamBusy: too few are idle.
        """
        row = UpstreamSessionRow
        count = session.scalar(select(func.count()).select_from(row).where(row.upstream == upstream)) or 0
        excess = count + 1 - limit
        if excess <= 0:
            return ()
        idle = row.last_used_at <= int(self._clock()) - IDLE
        oldest = select(row).where(row.upstream == upstream, idle).order_by(row.last_used_at).limit(excess)
        # A session that its caller replaces at this moment is in use.
        found = session.scalars(oldest.with_for_update(skip_locked=True) if lock else oldest).all()
        if len(found) < excess:
            raise UpstreamBusy(f"all {limit} sessions of the upstream are in use (upstream.max_sessions)")
        return found

    async def touch(self, upstream: str, callers: Collection[Caller]) -> None:
        """Record that the sessions of callers were in use until now. Raises UpstreamUnavailable."""
        if not callers:
            return
        table = inspect(UpstreamSessionRow).local_table
        used = (
            update(UpstreamSessionRow.__table__)  # type: ignore[arg-type]
            .where(
                table.c.upstream == upstream,
                table.c.client_id == bindparam("caller_client_id"),
                table.c.subject == bindparam("caller_subject"),
            )
            .values(last_used_at=int(self._clock()))
        )
        parameters = [{"caller_client_id": caller.client_id, "caller_subject": caller.subject} for caller in callers]
        with _as_unavailable():
            await self._database.run_write(lambda session: session.connection().execute(used, parameters))

    async def prune(self, upstream: str, idle_timeout: float) -> Sequence[Connection]:
        """Remove the sessions of an upstream that were unused for `idle_timeout` seconds, and return them.

        Raises:
            UpstreamUnavailable: the database or the key cannot be read.
        """
        row, now = UpstreamSessionRow, int(self._clock())
        idle = delete(row).where(row.upstream == upstream, row.last_used_at <= now - max(idle_timeout, IDLE))
        forgotten = delete(row).where(row.last_used_at <= now - _FORGOTTEN)

        def remove(session: Session) -> list[Connection]:
            removed = session.scalars(idle.returning(row)).all()
            session.execute(forgotten)
            return [*filter(None, map(self._decrypted, removed))]

        with _as_unavailable():
            return await self._database.run_write(remove)

    def _decrypted(self, row: UpstreamSessionRow) -> Connection | None:
        """Return None for a session that was encrypted with another key, or that is not of this row."""
        session_id = self._key.decrypt(row.session, row.upstream, row.client_id, row.subject)
        return None if session_id is None else Connection(row.protocol_version, session_id)


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """Turn a failure of the database into UpstreamUnavailable: without its session, a call is not sent."""
    try:
        yield
    except (SQLAlchemyError, CommitUnknown) as error:
        raise UpstreamUnavailable(
            f"the sessions of the upstream cannot be read or written: database error {type(error).__name__}"
        ) from error
