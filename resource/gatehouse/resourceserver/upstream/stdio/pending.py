"""A request that waits for its outcome, whether a program or the owner of the programs answers it."""

import asyncio
from collections import deque
from typing import Final, Generic, TypeVar

from gatehouse.resourceserver.upstream.upstream import MAX_TIMEOUTS, Notify, UpstreamError

_MAX_PROGRESS: Final = 100
"""Progress notifications that are kept for a slow caller. Older ones are dropped."""

ResultT = TypeVar("ResultT")

Progress = tuple[float, float | None, str | None]
"""Progress, total, message."""


class PendingRequest(Generic[ResultT]):
    """A request without an outcome, and its progress that was not forwarded yet."""

    __slots__ = ("_changed", "_outcome", "_progress")

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._outcome: ResultT | UpstreamError | None = None
        self._progress: deque[Progress] = deque(maxlen=_MAX_PROGRESS)

    def end(self, outcome: ResultT | UpstreamError) -> None:
        """Set the outcome: a result other than None, or an error."""
        self._outcome = outcome
        self._changed.set()

    def add_progress(self, progress: Progress) -> bool:
        """Keep progress until it is forwarded. Return whether no other was dropped for it."""
        room = len(self._progress) < _MAX_PROGRESS
        self._progress.append(progress)
        self._changed.set()
        return room

    async def wait(self, limit: float, notify: Notify | None) -> ResultT:
        """Forward progress in order until there is an outcome, and return it.

        Args:
            limit: seconds without progress. The whole request may last MAX_TIMEOUTS times as long.
            notify: forwards progress; None if the caller requested none.

        Raises:
            UpstreamError: as the outcome.
            TimeoutError: a limit is over.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + MAX_TIMEOUTS * limit
        while self._outcome is None:
            async with asyncio.timeout_at(min(end, loop.time() + limit)):
                await self._changed.wait()
            self._changed.clear()
            while self._progress:
                progress = self._progress.popleft()
                if notify is not None:
                    async with asyncio.timeout_at(end):
                        await notify(*progress)
        if isinstance(self._outcome, UpstreamError):
            raise self._outcome
        return self._outcome
