"""Background maintenance. One process does it for all of them, elected with a lease in the database.

Each worker has a thread that checks every ten seconds whether it holds the lease or can acquire it. The lease only
avoids duplicate work: every task must tolerate that two processes run it at once. Tasks for the memory of a process run
in every process.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType

from sqlalchemy import or_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import LeaseRow
from gatehouse.shared.protocol.clock import Clock

INTERVAL = 10.0
"""Seconds between two checks of the lease."""

LEASE = 30
"""Seconds after which a leader that does not renew its lease is replaced."""

_NAME = "maintenance"

log = logging.getLogger(__name__)


class Maintenance:
    """The maintenance thread of one process."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        tasks: Mapping[str, Callable[[], object]],
        *,
        own: Mapping[str, Callable[[], object]] = MappingProxyType({}),
        interval: float = INTERVAL,
    ) -> None:
        """Create the thread. One process runs `tasks` for all processes; each process runs its `own` tasks."""
        self._database = database
        self._clock = clock
        self._tasks = tasks
        self._own = own
        self._interval = interval
        self._holder = f"m_{secrets.token_hex(8)}"
        self._leads = False
        self._failed: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="maintenance", daemon=True)

    def start(self) -> None:
        """Start the thread. Call this once."""
        self._thread.start()

    def stop(self) -> None:
        """Release the lease and end the thread, if it was started. Waits for a running task."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=LEASE)

    def run_once(self) -> bool:
        """Run the tasks of this process and, if it holds or acquires the lease, those for all processes. Never raises.

        Return whether this process holds the lease.
        """
        for name, task in self._own.items():
            self._attempt(name, task)
        self._leads = bool(self._attempt("lease", self._acquire_lease))
        if self._leads:
            for name, task in self._tasks.items():
                self._attempt(name, task)
        return self._leads

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self.run_once()
            self._stopping.wait(self._interval)
        if self._leads:
            self._attempt("lease", self._release_lease)

    def _attempt(self, name: str, task: Callable[[], object]) -> object:
        try:
            result = task()
        except Exception as error:  # noqa: BLE001 - a failed task is retried in the next round
            # One line for each outage, however long it lasts.
            if name not in self._failed:
                log.error("maintenance: %s failed and will be retried: %s", name, type(error).__name__)
            self._failed.add(name)
            return None
        if name in self._failed:
            log.info("maintenance: %s works again", name)
        self._failed.discard(name)
        return result

    def _acquire_lease(self) -> bool:
        now = int(self._clock())
        with self._database.read() as session:
            held = session.get(LeaseRow, _NAME)
            if held is not None and held.holder != self._holder and _is_held(held, now):
                return False
        try:
            with self._database.write() as session:
                if held is None:
                    session.add(LeaseRow(name=_NAME, holder=self._holder, expires_at=now + LEASE))
                    return True
                # The statement checks again: of two processes that find the lease free, one acquires it. A lease that
                # ends too far in the future was written by a wrong clock.
                free = or_(
                    LeaseRow.holder == self._holder, LeaseRow.expires_at <= now, LeaseRow.expires_at > now + 2 * LEASE
                )
                acquired = session.execute(
                    update(LeaseRow)
                    .where(LeaseRow.name == _NAME, free)
                    .values(holder=self._holder, expires_at=now + LEASE)
                    .returning(LeaseRow.name)
                )
                return acquired.first() is not None
        except IntegrityError:
            return False

    def _release_lease(self) -> None:
        with self._database.write() as session:
            session.execute(
                update(LeaseRow).where(LeaseRow.name == _NAME, LeaseRow.holder == self._holder).values(expires_at=0)
            )


def has_leader(session: Session, now: int) -> bool:
    """Tell whether a server uses the database, or did until a moment ago."""
    held = session.get(LeaseRow, _NAME)
    return held is not None and _is_held(held, now)


def _is_held(lease: LeaseRow, now: int) -> bool:
    return now < lease.expires_at <= now + 2 * LEASE
