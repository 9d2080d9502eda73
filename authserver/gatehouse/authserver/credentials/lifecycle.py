"""The life of a credential: the same for a client's secrets and keys, and for the credentials of a resource."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import delete
from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ClientKeyRow, ClientSecretRow, CredentialRow, ResourceCredentialRow
from gatehouse.shared.protocol.clock import Clock, iso_time

_DAY = 24 * 3600

MAX_GRACE_PERIOD = 90 * _DAY
"""Seconds that a credential may be accepted beside the one that took its place, at most."""

_REMEMBERED_FOR = 30 * _DAY
"""Seconds for which a credential that is over is kept, so that its use can be told from a wrong one."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a credential was made, was last used, and is over. Times are seconds since the epoch."""

    created_at: int
    expires_at: int | None = None
    revoked: bool = False
    """Ended by an admin, whatever the clock of a node says."""
    last_used_at: int | None = None
    """Some two minutes old at most while a server runs."""

    def is_inactive(self, now: float) -> bool:
        """Tell whether the credential is accepted no more."""
        return self.revoked or (self.expires_at is not None and now >= self.expires_at)

    def oldest_first(self) -> tuple[int, bool, int]:
        """Return what to sort by: of those that were made in one second, the one that ends is the older one."""
        return self.created_at, self.expires_at is None, self.expires_at or 0


ENDLESS = Lifetime(0)
"""The life of a credential that nothing is known of but that it is accepted."""


class Credential(Protocol):
    """A credential."""

    @property
    def lifetime(self) -> Lifetime:
        """Its lifetime."""
        ...


CredentialT = TypeVar("CredentialT", bound=Credential)
RowT = TypeVar("RowT", bound=CredentialRow)


def lifetime_of(row: CredentialRow) -> Lifetime:
    """Read the life of a stored credential."""
    return Lifetime(row.created_at, row.expires_at, row.revoked, row.last_used_at)


def active(credentials: Iterable[CredentialT], now: float) -> tuple[CredentialT, ...]:
    """Return the credentials that are accepted, in their order."""
    return tuple(credential for credential in credentials if not credential.lifetime.is_inactive(now))


def by_last_use(credentials: Iterable[CredentialT], now: float) -> list[CredentialT]:
    """Order credentials: those that are accepted, then those that are over; of each kind the latest first."""

    def rank(credential: CredentialT) -> tuple[bool, int]:
        lifetime = credential.lifetime
        is_inactive = lifetime.is_inactive(now)
        return is_inactive, -(lifetime.expires_at or 0) if is_inactive else -lifetime.created_at

    return sorted(credentials, key=rank)


def inactive_reason(lifetime: Lifetime) -> str:
    """Say for the audit log since when a credential is over."""
    since = iso_time(lifetime.expires_at or 0)
    return f"was revoked at {since}" if lifetime.revoked else f"expired at {since}"


def check_grace_period(grace_period: int) -> None:
    """Check seconds of a grace period. Raises Refused."""
    if not 0 <= grace_period <= MAX_GRACE_PERIOD:
        raise Refused(f"The grace period is at most {MAX_GRACE_PERIOD // _DAY} days.")


def end(row: CredentialRow, now: int, grace_period: int = 0) -> None:
    """Let a credential end after a grace period, but not later than it would have; at once without one."""
    if grace_period == 0:
        row.expires_at, row.revoked = now, True
        return
    row.expires_at = now + grace_period if row.expires_at is None else min(row.expires_at, now + grace_period)


def partition_active(rows: Iterable[RowT], now: int) -> tuple[list[RowT], list[RowT]]:
    """Part rows into those that are accepted and those that are over, the latest end first."""
    active: list[RowT] = []
    inactive: list[RowT] = []
    for row in rows:
        (inactive if lifetime_of(row).is_inactive(now) else active).append(row)
    return active, sorted(inactive, key=lambda row: row.expires_at or 0, reverse=True)


def match(active: Sequence[RowT], inactive: Sequence[RowT], is_named: Callable[[RowT], bool]) -> list[RowT]:
    """Return the live credentials of a name; where there is none, those that are over."""
    return [row for row in active if is_named(row)] or [row for row in inactive if is_named(row)]


def prune(session: Session, inactive: Sequence[CredentialRow], remembered: int) -> None:
    """Delete all but a number of credentials that are over, given with the latest end first."""
    for row in inactive[remembered:]:
        session.delete(row)
    session.flush()


def prune_credentials(database: Database, clock: Clock) -> None:
    """Delete the credentials that have been over for 30 days."""
    before = int(clock()) - _REMEMBERED_FOR
    with database.write() as session:
        for row in (ClientSecretRow, ClientKeyRow, ResourceCredentialRow):
            session.execute(delete(row).where(row.expires_at < before))
