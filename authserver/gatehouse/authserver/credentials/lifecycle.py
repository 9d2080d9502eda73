"""The life of a credential: the same for a client's secrets and keys, and for the credentials of a resource."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import delete
from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ClientKeyRow, ClientSecretRow, LivedRow, ResourceCredentialRow
from gatehouse.shared.protocol.clock import Clock, iso_time

_DAY = 24 * 3600

MAX_OVERLAP = 90 * _DAY
"""Seconds that a credential may be accepted beside the one that took its place, at most."""

_REMEMBERED_FOR = 30 * _DAY
"""Seconds for which a credential that is over is kept, so that its use can be told from a wrong one."""


@dataclass(frozen=True, slots=True)
class Life:
    """When a credential was made, was last used, and is over. Times are seconds since the epoch."""

    created_at: int
    expires_at: int | None = None
    ended: bool = False
    """Ended by an admin, whatever the clock of a node says."""
    last_used_at: int | None = None
    """Some two minutes old at most while a server runs."""

    def is_over(self, now: float) -> bool:
        """Tell whether the credential is accepted no more."""
        return self.ended or (self.expires_at is not None and now >= self.expires_at)

    def oldest_first(self) -> tuple[int, bool, int]:
        """Return what to sort by: of those that were made in one second, the one that ends is the older one."""
        return self.created_at, self.expires_at is None, self.expires_at or 0


ENDLESS = Life(0)
"""The life of a credential that nothing is known of but that it is accepted."""


class Lived(Protocol):
    """A credential."""

    @property
    def life(self) -> Life:
        """Its life."""
        ...


LivedT = TypeVar("LivedT", bound=Lived)
RowT = TypeVar("RowT", bound=LivedRow)


def life_of(row: LivedRow) -> Life:
    """Read the life of a stored credential."""
    return Life(row.created_at, row.expires_at, row.ended, row.last_used_at)


def live(credentials: Iterable[LivedT], now: float) -> tuple[LivedT, ...]:
    """Return the credentials that are accepted, in their order."""
    return tuple(credential for credential in credentials if not credential.life.is_over(now))


def likeliest_first(credentials: Iterable[LivedT], now: float) -> list[LivedT]:
    """Order credentials: those that are accepted, then those that are over; of each kind the latest first."""

    def rank(credential: LivedT) -> tuple[bool, int]:
        life = credential.life
        is_over = life.is_over(now)
        return is_over, -(life.expires_at or 0) if is_over else -life.created_at

    return sorted(credentials, key=rank)


def over(life: Life) -> str:
    """Say for the audit trail since when a credential is over."""
    since = iso_time(life.expires_at or 0)
    return f"was ended at {since}" if life.ended else f"expired at {since}"


def check_overlap(overlap: int) -> None:
    """Check seconds of an overlap. Raises Refused."""
    if not 0 <= overlap <= MAX_OVERLAP:
        raise Refused(f"The overlap is at most {MAX_OVERLAP // _DAY} days.")


def end(row: LivedRow, now: int, overlap: int = 0) -> None:
    """Let a credential end after an overlap, but not later than it would have; at once without one."""
    if overlap == 0:
        row.expires_at, row.ended = now, True
        return
    row.expires_at = now + overlap if row.expires_at is None else min(row.expires_at, now + overlap)


def split(rows: Iterable[RowT], now: int) -> tuple[list[RowT], list[RowT]]:
    """Part rows into those that are accepted and those that are over, the latest end first."""
    living: list[RowT] = []
    dead: list[RowT] = []
    for row in rows:
        (dead if life_of(row).is_over(now) else living).append(row)
    return living, sorted(dead, key=lambda row: row.expires_at or 0, reverse=True)


def named(living: Sequence[RowT], dead: Sequence[RowT], is_named: Callable[[RowT], bool]) -> list[RowT]:
    """Return the live credentials of a name; where there is none, those that are over."""
    return [row for row in living if is_named(row)] or [row for row in dead if is_named(row)]


def forget(session: Session, dead: Sequence[LivedRow], remembered: int) -> None:
    """Delete all but a number of credentials that are over, given with the latest end first."""
    for row in dead[remembered:]:
        session.delete(row)
    session.flush()


def forget_credentials(database: Database, clock: Clock) -> None:
    """Delete the credentials that have been over for 30 days."""
    before = int(clock()) - _REMEMBERED_FOR
    with database.write() as session:
        for row in (ClientSecretRow, ClientKeyRow, ResourceCredentialRow):
            session.execute(delete(row).where(row.expires_at < before))
