"""The database for the requests of an event loop: a function runs in a thread, in one transaction.

A thread cannot be cancelled. A task that is cancelled while its function runs waits for it, so that what the function
did is known when the task ends.
"""

import asyncio
import concurrent.futures
import contextlib
import math
import sqlite3
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import anyio
from sqlalchemy import URL
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from gatehouse.shared.service import deadline
from gatehouse.shared.service.database import LOCK_TIMEOUT, Database

ResultT = TypeVar("ResultT")

CONNECTIONS: Final = 5
"""Connections of one process for requests, and threads that use them."""


class CommitUnknown(Exception):
    """The database did not report whether it committed a transaction."""

    def __init__(self) -> None:
        super().__init__("the database did not report whether the transaction was committed")


class RequestDatabase:
    """The database of one process for its requests.

    No other thread uses the session, and the transaction has ended when the loop gets the result.
    """

    def __init__(self, url: URL, lock_timeout: int = LOCK_TIMEOUT) -> None:
        """`lock_timeout`: milliseconds that a write waits for another."""
        self.lock_timeout = lock_timeout
        self._database = Database(url, pool_size=CONNECTIONS, lock_timeout=lock_timeout)
        self._threads = Threads(CONNECTIONS)
        # SQLite has one writer. The others wait on the loop, where they occupy no thread that a reader could use.
        writers = 1 if url.get_backend_name() == "sqlite" else CONNECTIONS
        self._writers = asyncio.Semaphore(writers)

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Run a function in a thread, without a transaction.

        Raises:
            PoolTimeout: no thread was free before the deadline.
            BaseException: whatever the function raises.
        """
        return await self._threads.run(function)

    async def run_read(self, function: Callable[[Session], ResultT]) -> ResultT:
        """Run a function in a thread with a session that only reads, and does not wait for writers.

        Raises:
            SQLAlchemyError: the database failed, or no thread was free before the deadline.
            BaseException: whatever the function raises.
        """
        return await self._threads.run(partial(self.read, function))

    async def run_write(self, function: Callable[[Session], ResultT]) -> ResultT:
        """Run a function in a thread with a session that commits when it returns, and rolls back if it raises.

        Raises:
            CommitUnknown: the connection was lost, or the disk failed, during the commit.
            SQLAlchemyError: any other failure of the database, or no thread was free. Nothing was changed.
            BaseException: whatever the function raises. Nothing was changed.
        """
        await acquire(self._writers, self.lock_timeout / 1000)
        try:
            return await self._threads.run(partial(self._write, function))
        finally:
            self._writers.release()

    def read(self, function: Callable[[Session], ResultT]) -> ResultT:
        """Do what `run_read` does, in the current thread."""
        with self._database.read() as session:
            return function(session)

    def _write(self, function: Callable[[Session], ResultT]) -> ResultT:
        sent: list[None] = []
        try:
            with self._database.write(committing=partial(sent.append, None)) as session:
                result = function(session)
        except Exception as error:
            if sent and not _rolled_back(error):
                raise CommitUnknown from error
            raise
        return result

    async def ping(self) -> None:
        """Check that the database answers. Raises SQLAlchemyError if it does not."""
        await self._threads.run(self._database.ping)

    def pool(self) -> tuple[int, int]:
        """Return how many connections are in use, and how many may be."""
        return self._database.pool()

    def close(self) -> None:
        """Close every connection."""
        self._threads.close()
        self._database.close()


def _rolled_back(error: Exception) -> bool:
    """Tell whether an error of a commit proves that nothing was changed."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code (https://sqlite.org/rescode.html).
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT}
    state = getattr(cause, "sqlstate", None)
    # Connection failures, shutdowns and "statement completion unknown" (PostgreSQL, Appendix A).
    return state is not None and not state.startswith(("08", "57")) and state != "40003"


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a function raised. It leaves the thread as a value, because a future does not accept every exception."""

    error: BaseException


class Threads:
    """A few threads for functions that block, as many as there are connections to the database.

    They start when they are first needed, and so after the fork of a worker.
    """

    def __init__(self, count: int) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="call")
        self._free = asyncio.Semaphore(count)

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Run a function in a thread, in a copy of the current context. The wait for a thread ends at the deadline.

        If the task is cancelled in the meantime, the cancellation takes effect when the function has ended: at once if
        it raised, at the next `await` of the task if it returned.

        Raises:
            PoolTimeout: no thread was free in time, or the process stops. The function was not run.
            BaseException: whatever the function raises.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        await acquire(self._free)
        try:
            context = copy_context()
            work = self._submit(context, function)
            cancelled = await _finish(work)
        finally:
            self._free.release()
        deadline.continue_from(context)
        result = work.result()
        if isinstance(result, _Raised):
            if cancelled is not None:
                raise cancelled from result.error
            raise result.error
        if cancelled is not None:
            _cancel_later(cancelled)
        return result

    def _submit(
        self, context: Context, function: Callable[[], ResultT]
    ) -> "concurrent.futures.Future[ResultT | _Raised]":
        """Give a function to the threads. Raises PoolTimeout: it was not run, and never will be."""
        work: concurrent.futures.Future[ResultT | _Raised] = concurrent.futures.Future()
        try:
            self._executor.submit(_run, work, context, function)
        except RuntimeError:
            # The process stops, while connections can still deliver requests; or the system has no thread left, and the
            # executor keeps the call for a thread that becomes free. If one has taken it, its result counts.
            if work.cancel():
                raise PoolTimeout("no thread can be started, or the threads have stopped") from None
        return work

    def close(self) -> None:
        """Let the threads end when their functions have."""
        self._executor.shutdown(wait=False)


async def acquire(lock: asyncio.Semaphore, limit: float = deadline.WAIT_LIMIT) -> None:
    """Acquire a semaphore within `limit` seconds, and before the deadline. Raises PoolTimeout."""
    if not lock.locked():
        await lock.acquire()
        return
    try:
        async with asyncio.timeout(deadline.remaining(limit)):
            await lock.acquire()
    except TimeoutError:
        raise PoolTimeout("no connection was free in time") from None


def _run(
    work: "concurrent.futures.Future[ResultT | _Raised]", context: Context, function: Callable[[], ResultT]
) -> None:
    if work.set_running_or_notify_cancel():
        work.set_result(_call(context, function))


def _call(context: Context, function: Callable[[], ResultT]) -> ResultT | _Raised:
    try:
        return context.run(function)
    except (GeneratorExit, StopIteration) as error:
        # In a coroutine, these mean something else.
        replacement = RuntimeError(f"the function raised {type(error).__name__}")
        replacement.__cause__ = error
        return _Raised(replacement)
    except BaseException as error:  # noqa: BLE001 - raised again in the task
        return _Raised(error)


async def _finish(work: "concurrent.futures.Future[Any]") -> asyncio.CancelledError | None:
    """Wait until a thread has finished. Return what cancelled the task in the meantime.

    Raises:
        CancelledError: the task was cancelled before the thread began.
    """
    try:
        await asyncio.wrap_future(work)
    except asyncio.CancelledError as error:
        if work.cancelled():
            raise
        cancelled = error
    except GeneratorExit:
        # The coroutine is closed, and must not await.
        if not work.cancel():
            concurrent.futures.wait([work])
        raise
    else:
        return None
    with anyio.CancelScope(shield=True):
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([asyncio.wrap_future(work)])
    return cancelled


def _cancel_later(cancelled: asyncio.CancelledError) -> None:
    """Cancel the current task again, at its next await. For a cancelled scope, anyio does that by itself."""
    task = asyncio.current_task()
    if task is not None and anyio.current_effective_deadline() != -math.inf:
        task.uncancel()
        task.cancel(*cancelled.args)
