"""A few threads for functions that block, as many as there are connections to the database.

A thread cannot be cancelled. A task that is cancelled while its function runs waits for it, so that what the function
did is known when the task ends.
"""

import asyncio
import concurrent.futures
import contextlib
import math
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gatehouse.shared.service import deadline

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a function raised. It leaves the thread as a value, because a future does not accept every exception."""

    error: BaseException


class Threads:
    """The threads of one process. They start when they are first needed, and so after the fork of a worker."""

    def __init__(self, count: int) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="call")
        self._free = asyncio.Semaphore(count)

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Run a function in a thread, in a copy of the current context. The wait for a thread ends at the deadline.

        If the task is cancelled in the meantime, the cancellation takes effect when the function has ended: at once if
        it raised, at the next `await` of the task if it returned.

        Raises:
            PoolTimeout: no thread was free in time.
            BaseException: whatever the function raises.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        await acquire(self._free)
        try:
            context = copy_context()
            work = self._executor.submit(_call, context, function)
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
