"""The lifecycle of a credential: one set of rules for client secrets, client keys and resource credentials.

A credential is active until it expires or an admin revokes it. Rotation replaces credentials: the old ones expire after
a grace period, or are revoked at once without one. Inactive ones are kept for a while, so that the audit log can tell
their use from that of an unknown credential. `LastUse` writes when each credential was last used, outside of requests.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from sqlalchemy import delete, select, tuple_, update
from sqlalchemy.orm import Session

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import (
    ClientKeyRow,
    ClientSecretRow,
    CredentialRow,
    ResourceCredentialRow,
    TrustRuleRow,
)
from gatehouse.shared.protocol.clock import Clock, iso_time
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.remediation import client_command

_DAY = 24 * 3600

MAX_GRACE_PERIOD = 90 * _DAY
"""Seconds for which a replaced credential may stay active, at most."""

_KEPT_FOR = 30 * _DAY
"""Seconds for which an inactive credential is kept."""

LAST_USE_INTERVAL = 60
"""Minimum seconds between two writes of the last use of one credential."""

_BATCH = 100
"""Credentials whose last use is written in one transaction. SQLite has one writer, and requests wait for it."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a credential was created, was last used, and expires. Times are seconds since the epoch."""

    created_at: int
    expires_at: int | None = None
    """None: never."""
    revoked: bool = False
    """Inactive whatever the clock of a node says; `expires_at` is then the time of the revocation."""
    last_used_at: int | None = None
    """Up to about two minutes old while a server runs; None if the credential was never used."""

    def is_inactive(self, now: float) -> bool:
        """Whether the credential has expired or was revoked."""
        return self.revoked or (self.expires_at is not None and now >= self.expires_at)

    def oldest_first(self) -> tuple[int, bool, int]:
        """Return a sort key. Of credentials created in the same second, the one that expires is the older one."""
        return self.created_at, self.expires_at is None, self.expires_at or 0


NEVER_EXPIRES = Lifetime(0)
"""The default lifetime."""


class Credential(Protocol):
    """A credential that was loaded."""

    @property
    def lifetime(self) -> Lifetime:
        """Its lifetime."""
        ...


CredentialT = TypeVar("CredentialT", bound=Credential)
RowT = TypeVar("RowT", bound=CredentialRow)


def lifetime_of(row: CredentialRow) -> Lifetime:
    """Return the lifetime of a stored credential."""
    return Lifetime(row.created_at, row.expires_at, row.revoked, row.last_used_at)


def active(credentials: Iterable[CredentialT], now: float) -> tuple[CredentialT, ...]:
    """Return the active credentials, in their order."""
    return tuple(credential for credential in credentials if not credential.lifetime.is_inactive(now))


def by_last_use(credentials: Iterable[CredentialT], now: float) -> list[CredentialT]:
    """Sort credentials by how likely they are in use: active ones before inactive ones, the newest first."""

    def rank(credential: CredentialT) -> tuple[bool, int]:
        lifetime = credential.lifetime
        is_inactive = lifetime.is_inactive(now)
        return is_inactive, -(lifetime.expires_at or 0) if is_inactive else -lifetime.created_at

    return sorted(credentials, key=rank)


def inactive_reason(lifetime: Lifetime) -> str:
    """Return, for the audit log, why a credential is inactive and since when."""
    since = iso_time(lifetime.expires_at or 0)
    return f"was revoked at {since}" if lifetime.revoked else f"expired at {since}"


def check_grace_period(seconds: int) -> None:
    """Raise CommandRefused unless a grace period is within its bounds."""
    if not 0 <= seconds <= MAX_GRACE_PERIOD:
        raise CommandRefused(f"The grace period is at most {MAX_GRACE_PERIOD // _DAY} days.")


@dataclass(frozen=True, slots=True)
class CredentialKind:
    """What commands and messages call the credentials of a client."""

    name: str
    """`secret` or `key`, as in `authserver client secret rotate`."""
    identifier: str
    """What names one of them: `id` or `thumbprint`."""
    rotate_options: str = ""
    """What has to follow the rotate command."""


class StoredCredentials(Generic[RowT]):
    """The credentials of one owner, in a transaction that holds the owner's lock.

    `kept` is how many inactive ones stay in the database, the most recent first; None for all of them.
    """

    def __init__(self, session: Session, rows: Iterable[RowT], now: int, *, kept: int | None = None) -> None:
        self._session = session
        self._now = now
        self._kept = kept
        self.active: list[RowT] = []
        inactive: list[RowT] = []
        for row in rows:
            (inactive if lifetime_of(row).is_inactive(now) else self.active).append(row)
        self.inactive = sorted(inactive, key=lambda row: row.expires_at or 0, reverse=True)

    def replace(self, replaced: Sequence[RowT], grace_period: int) -> None:
        """Let active credentials expire after a grace period, but no later than before; revoke them without one."""
        if not grace_period:
            self._revoke(*replaced)
            return
        expires_at = self._now + grace_period
        for row in replaced:
            row.expires_at = expires_at if row.expires_at is None else min(row.expires_at, expires_at)
        self._prune()

    def revoke(self, client_id: str, kind: CredentialKind, is_named: Callable[[RowT], bool]) -> RowT | None:
        """Revoke one credential of a client at once. Return it, or None if it is inactive already.

        Active credentials are searched first.

        Raises:
            CommandRefused: no credential has that name, several have, or it is the only active one.
        """
        found = [row for row in self.active if is_named(row)]
        if not found and any(is_named(row) for row in self.inactive):
            return None
        if len(found) != 1:
            # The name is not repeated: somebody may have given the secret itself.
            raise CommandRefused(
                f"That names {f'several {kind.name}s' if found else f'no {kind.name}'} of the client. Give the "
                f"{kind.identifier} that is shown by: {client_command(f'{kind.name} list', client_id)}"
            )
        if len(self.active) == 1:
            raise CommandRefused(
                f"It is the only active {kind.name}, and the client could not authenticate without it. Give it "
                f"another one: {client_command(f'{kind.name} rotate', client_id)}{kind.rotate_options}; or disable "
                f"the client: {client_command('disable', client_id)}"
            )
        self._revoke(found[0])
        return found[0]

    def _revoke(self, *rows: RowT) -> None:
        for row in rows:
            row.expires_at, row.revoked = self._now, True
        self.inactive[:0] = reversed(rows)
        self._prune()

    def _prune(self) -> None:
        if self._kept is not None:
            for row in self.inactive[self._kept :]:
                self._session.delete(row)
        self._session.flush()


def prune_credentials(database: Database, clock: Clock) -> None:
    """Delete the credentials that have been inactive for 30 days."""
    before = int(clock()) - _KEPT_FOR
    with database.write() as session:
        for row in (ClientSecretRow, ClientKeyRow, ResourceCredentialRow):
            session.execute(delete(row).where(row.expires_at < before))


CredentialTable: TypeAlias = (
    type[ClientSecretRow] | type[ClientKeyRow] | type[ResourceCredentialRow] | type[TrustRuleRow]
)
"""What has a `last_used_at`."""
_Credential: TypeAlias = tuple[CredentialTable, tuple[str, ...]]


class LastUse:
    """The times at which this process last accepted each credential, until they are written."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._noted: dict[_Credential, int] = {}
        self._written: dict[_Credential, int] = {}
        self._lock = threading.Lock()

    def note(self, row: CredentialTable, *key: str, now: float) -> None:
        """Note that a credential, named by its table and primary key, was used. `now` is seconds since the epoch."""
        with self._lock:
            self._noted[row, key] = int(now)

    def write(self, *, everything: bool = False) -> None:
        """Write the times that are due, or `everything`. Raises SQLAlchemyError; unwritten times stay noted."""
        due = self._take(everything=everything)
        try:
            for batch in _batches(due):
                self._write(batch)
                for credential in batch:
                    del due[credential]
        finally:
            with self._lock:
                for credential, used_at in due.items():
                    # A use noted meanwhile is newer.
                    self._noted.setdefault(credential, used_at)
                    self._written.pop(credential, None)

    def close(self) -> None:
        """Write everything, if the database is available."""
        with suppress(Exception):
            self.write(everything=True)

    def _take(self, *, everything: bool) -> dict[_Credential, int]:
        now = int(self._clock())
        with self._lock:
            # If the clock is set back, a credential must not go unwritten until the clock has caught up.
            self._written = {known: at for known, at in self._written.items() if abs(now - at) < LAST_USE_INTERVAL}
            due = [credential for credential in self._noted if everything or credential not in self._written]
            self._written.update(dict.fromkeys(due, now))
            return {credential: self._noted.pop(credential) for credential in due}

    def _write(self, batch: dict[_Credential, int]) -> None:
        with self._database.write() as session:
            for table in {table for table, _ in batch}:
                columns = table.__mapper__.primary_key
                used = {key: used_at for (its_table, key), used_at in batch.items() if its_table is table}
                # A row that a command has locked is skipped.
                query = select(table.last_used_at, *columns).where(tuple_(*columns).in_(used))
                found = session.execute(query.with_for_update(skip_locked=True))
                names = [str(column.key) for column in columns]
                newer = [
                    {**dict(zip(names, key, strict=True)), "last_used_at": used[tuple(key)]}
                    for written, *key in found
                    if (written or 0) < used[tuple(key)]
                ]
                if newer:
                    session.execute(update(table), newer)


def _batches(due: dict[_Credential, int]) -> Iterator[dict[_Credential, int]]:
    credentials = list(due)
    for start in range(0, len(credentials), _BATCH):
        yield {credential: due[credential] for credential in credentials[start : start + _BATCH]}
