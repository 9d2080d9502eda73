"""What a server does without being asked: one process of all does it, elected through the database.

Each worker has a thread that looks every ten seconds whether it holds the lease, or may take it. The lease only keeps
the others from doing the same work; that two processes at once do no harm is up to each task. What a process has in
its own memory, it does itself.
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
"""Seconds between two looks at the lease."""

LEASE = 30
"""Seconds after which a leader that is not heard of is replaced."""

_NAME = "maintenance"

log = logging.getLogger(__name__)


class Maintenance:
    """The thread of one process."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        tasks: Mapping[str, Callable[[], object]],
        *,
        own: Mapping[str, Callable[[], object]] = MappingProxyType({}),
        interval: float = INTERVAL,
    ) -> None:
        """Take the tasks that one process does for all, and those that each does for its `own` sake."""
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
        """Start the thread; once."""
        self._thread.start()

    def stop(self) -> None:
        """Give the lease back and end the thread, if it was started. Waits for a task that is under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=LEASE)

    def run_once(self) -> bool:
        """Do its own tasks, and every other one if this process holds the lease, or can have it. Never raises.

        Return whether it does.
        """
        for name, task in self._own.items():
            self._attempt(name, task)
        self._leads = bool(self._attempt("lease", self._take_lease))
        if self._leads:
            for name, task in self._tasks.items():
                self._attempt(name, task)
        return self._leads

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self.run_once()
            self._stopping.wait(self._interval)
        if self._leads:
            self._attempt("lease", self._give_lease_back)

    def _attempt(self, name: str, task: Callable[[], object]) -> object:
        try:
            result = task()
        except Exception as error:  # noqa: BLE001 - whatever fails now is tried again at the next turn
            # One line for an outage, however long it lasts.
            if name not in self._failed:
                log.error("maintenance: %s failed, and is tried again: %s", name, type(error).__name__)
            self._failed.add(name)
            return None
        if name in self._failed:
            log.info("maintenance: %s works again", name)
        self._failed.discard(name)
        return result

    def _take_lease(self) -> bool:
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
                # Conditions again, in the statement: of two that find it free, one gets it. A lease that ends later
                # than one can was written by a wrong clock.
                free = or_(
                    LeaseRow.holder == self._holder, LeaseRow.expires_at <= now, LeaseRow.expires_at > now + 2 * LEASE
                )
                taken = session.execute(
                    update(LeaseRow)
                    .where(LeaseRow.name == _NAME, free)
                    .values(holder=self._holder, expires_at=now + LEASE)
                    .returning(LeaseRow.name)
                )
                return taken.first() is not None
        except IntegrityError:
            return False

    def _give_lease_back(self) -> None:
        with self._database.write() as session:
            session.execute(
                update(LeaseRow).where(LeaseRow.name == _NAME, LeaseRow.holder == self._holder).values(expires_at=0)
            )


def is_led(session: Session, now: int) -> bool:
    """Tell whether a server works on the database, or did until a moment ago."""
    held = session.get(LeaseRow, _NAME)
    return held is not None and _is_held(held, now)


def _is_held(lease: LeaseRow, now: int) -> bool:
    return now < lease.expires_at <= now + 2 * LEASE
