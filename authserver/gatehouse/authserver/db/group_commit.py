"""Group commit: rows that must be on disk before an answer leaves, written together with those of other requests.

A transaction for each request would cost more than everything else in it, and on SQLite all of them would wait for one
lock. Here one thread writes for all requests of a process. The first row is written at once. Rows that arrive while it
is committed form the next group, so no row waits for others to arrive.
"""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection

from gatehouse.authserver.db.database import Database
from gatehouse.shared.service.deadline import WAIT_LIMIT, DeadlineExceeded, before_deadline, remaining

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

If it raises for several items, they are written again one by one, because one of them may be what cannot be written;
if it raises WriteAgain, all together by another function.
"""


class WriteAgain(Exception):
    """Rolls back what a GroupWrite has written for several items, and has another one write them."""

    def __init__(self, write: "GroupWrite[Any, Any]") -> None:
        super().__init__()
        self.write = write


@dataclass(frozen=True, slots=True)
class _Pending(Generic[ItemT, ResultT]):
    item: ItemT
    deadline: float
    result: "Future[ResultT] | asyncio.Future[ResultT]"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that waits for the result; None if a thread does."""
        return self.result.get_loop() if isinstance(self.result, asyncio.Future) else None

    def settle(self, outcome: ResultT | Exception) -> None:
        """Give the request its result, on its event loop, unless it has ended."""
        if self.result.done():
            return
        if isinstance(outcome, Exception):
            self.result.set_exception(outcome)
        else:
            self.result.set_result(outcome)


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

    def submit(self, item: ItemT) -> "asyncio.Future[ResultT]":
        """Queue an item. The future completes when its transaction has committed, or fails with what was raised.

        A future that is cancelled before its group begins writes nothing. Call this on an event loop.

        Raises:
            DeadlineExceeded: the process is stopping.
        """
        result: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self._append(item, result)
        return result

    async def write_async(self, item: ItemT) -> ResultT:
        """Write an item, and return its result when it is on disk, without blocking the event loop.

        Raises:
            DeadlineExceeded: it was not written, or it is unknown whether it was.
            SQLAlchemyError: it was not written, because the database is unavailable.
        """
        return await before_deadline(self.submit(item))

    def write_and_wait(self, item: ItemT) -> ResultT:
        """Write an item as `write_async`, in a thread."""
        result: Future[ResultT] = Future()
        self._append(item, result)
        try:
            return result.result(remaining())
        except TimeoutError:
            raise DeadlineExceeded from None

    def close(self) -> None:
        """Write what is waiting, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT)

    def _append(self, item: ItemT, result: "Future[ResultT] | asyncio.Future[ResultT]") -> None:
        with self._changed:
            if self._closing:
                raise DeadlineExceeded
            self._waiting.append(_Pending(item, self._monotonic() + remaining(), result))
            self._arrived = True
            # Started on first use, because a thread does not survive the fork of a worker.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while group := self._next_group():
            if group := self._still_wanted(group):
                self._commit(group, self._write)

    def _next_group(self) -> Sequence[_Pending[ItemT, ResultT]]:
        """Wait for items, and return those to write now; none at the end."""
        with self._changed:
            if self._all_locked:
                self._changed.wait_for(lambda: self._arrived or self._closing, _RETRY_INTERVAL)
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._arrived = self._all_locked = False
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            return group

    def _still_wanted(self, group: Sequence[_Pending[ItemT, ResultT]]) -> Sequence[_Pending[ItemT, ResultT]]:
        """Return the items whose requests still wait."""
        now = self._monotonic()
        _settle([(pending, DeadlineExceeded()) for pending in group if pending.deadline <= now])
        return [pending for pending in group if now < pending.deadline and not pending.result.cancelled()]

    def _commit(self, group: Sequence[_Pending[ItemT, ResultT]], write: GroupWrite[ItemT, ResultT]) -> None:
        """Write a group in one transaction, or its items one by one if that fails."""
        try:
            with self._database.engine.begin() as connection:
                results = write(connection, [pending.item for pending in group])
        except WriteAgain as again:
            self._commit(group, again.write)
            return
        except Exception as error:  # noqa: BLE001 - this thread must outlive whatever a driver raises
            if len(group) == 1:
                _settle([(group[0], error)])
                return
            for pending in group:
                for wanted in self._still_wanted([pending]):
                    self._commit([wanted], write)
            return
        outcomes = list(zip(group, results, strict=True))
        _settle([(pending, result) for pending, result in outcomes if not isinstance(result, Later)])
        locked = [pending for pending, result in outcomes if isinstance(result, Later)]
        self._try_again(locked)
        self._all_locked = len(locked) == len(group)

    def _try_again(self, locked: Sequence[_Pending[ItemT, ResultT]]) -> None:
        with self._changed:
            if not self._closing:
                self._waiting.extend(locked)
                return
        _settle([(pending, DeadlineExceeded()) for pending in locked])


def _settle(outcomes: Sequence[tuple[_Pending[ItemT, ResultT], ResultT | Exception]]) -> None:
    """Give requests their results: to those of an event loop in one call, because each call wakes the loop."""
    by_loop = defaultdict(list)
    for pending, outcome in outcomes:
        by_loop[pending.loop].append((pending, outcome))
    for loop, settled in by_loop.items():
        if loop is None:
            _deliver(settled)
        else:
            # A closed loop has no more requests.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver, settled)


def _deliver(outcomes: Sequence[tuple[_Pending[ItemT, ResultT], ResultT | Exception]]) -> None:
    for pending, outcome in outcomes:
        pending.settle(outcome)
