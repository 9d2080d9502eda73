"""Group commit: rows that must be on disk before an answer leaves, written together with those of other requests.

A transaction for each request would cost more than everything else in it, and on SQLite all of them would wait for one
lock. Here one thread writes for all requests of a process. The first row is written at once. Rows that arrive while it
is committed form the next group, so no row waits for others to arrive.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Generic, TypeVar

from sqlalchemy import Connection

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.http import DeadlineExceeded
from gatehouse.shared.service.deadline import WAIT_LIMIT, remaining

MAX_GROUP: Final = 64
"""Items in one transaction, at most."""

_RETRY_INTERVAL = 0.05
"""Seconds until items are tried again whose rows another transaction had locked."""

_CLOSE_TIMEOUT = 2 * WAIT_LIMIT
"""Seconds that the last groups may need."""


class Later(Enum):
    """The result of an item that cannot be written now."""

    LOCKED = "another transaction has locked its rows"


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

GroupWrite = Callable[[Connection, Sequence[ItemT]], Sequence[ResultT | Later]]
"""Writes items in a transaction, and returns the result of each. It locks rows in an order that all processes share.

It may raise for a group what it would return for each item alone: items of a failed group are written one by one.
"""


@dataclass(frozen=True, slots=True)
class _Pending(Generic[ItemT, ResultT]):
    item: ItemT
    deadline: float
    result: "Future[ResultT]" = field(default_factory=Future)

    def begin(self, now: float) -> bool:
        """Tell whether a request still waits for the item, which can then no longer be cancelled."""
        if not (self.result.running() or self.result.set_running_or_notify_cancel()):
            return False
        if self.deadline <= now:
            self.result.set_exception(DeadlineExceeded())
            return False
        return True


class GroupCommit(Generic[ItemT, ResultT]):
    """Writes items of one kind, each with the others that wait at the same time."""

    def __init__(
        self,
        database: Database,
        write: GroupWrite[ItemT, ResultT],
        *,
        name: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the writer. Its thread, with this name, starts with the first item."""
        self._database = database
        self._write = write
        self._name = name
        self._monotonic = monotonic
        self._waiting: list[_Pending[ItemT, ResultT]] = []
        self._arrived = self._all_locked = False
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, item: ItemT) -> "Future[ResultT]":
        """Queue an item. The future completes when its transaction has committed, or fails with what was raised.

        A future that is cancelled before its group begins writes nothing.

        Raises:
            DeadlineExceeded: the process is stopping.
        """
        pending: _Pending[ItemT, ResultT] = _Pending(item, self._monotonic() + remaining())
        with self._changed:
            if self._closing:
                raise DeadlineExceeded
            self._waiting.append(pending)
            self._arrived = True
            # Started on first use, because a thread does not survive the fork of a worker.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()
        return pending.result

    def write_and_wait(self, item: ItemT) -> ResultT:
        """Write an item, and return its result when it is on disk. Not for use on an event loop.

        Raises:
            DeadlineExceeded: it was not written, or it is unknown whether it was.
            SQLAlchemyError: it was not written, because the database is unavailable.
        """
        result = self.submit(item)
        try:
            return result.result(remaining())
        except TimeoutError:
            result.cancel()
            raise DeadlineExceeded from None

    async def write_async(self, item: ItemT) -> ResultT:
        """Write an item, and return its result when it is on disk, without blocking the event loop.

        Raises:
            DeadlineExceeded, SQLAlchemyError: as for `write_and_wait`.
        """
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self.submit(item)), remaining())
        except TimeoutError:
            raise DeadlineExceeded from None

    def close(self) -> None:
        """Write what is waiting, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT)

    def _run(self) -> None:
        while group := self._next_group():
            if begun := [pending for pending in group if pending.begin(self._monotonic())]:
                self._commit(begun)

    def _next_group(self) -> Sequence[_Pending[ItemT, ResultT]]:
        """Wait for items, and return those to write now; none at the end."""
        with self._changed:
            if self._all_locked:
                self._changed.wait_for(lambda: self._arrived or self._closing, _RETRY_INTERVAL)
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._arrived = self._all_locked = False
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            return group

    def _commit(self, group: Sequence[_Pending[ItemT, ResultT]]) -> None:
        """Write a group in one transaction, or its items one by one if that fails."""
        try:
            with self._database.engine.begin() as connection:
                results = self._write(connection, [pending.item for pending in group])
        except Exception as error:  # noqa: BLE001 - this thread must outlive whatever a driver raises
            self._isolate(group, error)
            return
        locked = []
        for pending, result in zip(group, results, strict=True):
            if isinstance(result, Later):
                locked.append(pending)
            else:
                pending.result.set_result(result)
        self._try_again(locked)
        self._all_locked = len(locked) == len(group)

    def _isolate(self, group: Sequence[_Pending[ItemT, ResultT]], error: Exception) -> None:
        """Fail the item of a group that could not be written, or write its items one by one."""
        if len(group) == 1:
            group[0].result.set_exception(error)
            return
        for pending in group:
            if pending.begin(self._monotonic()):
                self._commit([pending])

    def _try_again(self, locked: Sequence[_Pending[ItemT, ResultT]]) -> None:
        with self._changed:
            if not self._closing:
                self._waiting.extend(locked)
                return
        for pending in locked:
            pending.result.set_exception(DeadlineExceeded())
