"""The progress of one call, sent to a caller that requested it."""

from collections.abc import Awaitable, Callable

from gatehouse.resourceserver.catalogue import Progress

Notify = Callable[[float, float | None, str | None], Awaitable[None]]
"""Sends a progress notification: progress, total, message. Does nothing for a caller that sent no progressToken."""


class CallProgress(Progress):
    """The progress of one call."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._notified: float = -1
        self.done: float = 0
        """Items that the call has finished."""
        self.total: float | None = None
        """Items in all; None until the tool reports it."""

    async def report(self, done: float, total: float | None, message: str | None = None) -> None:
        """Send a notification if `done` has grown: each must exceed the one before (MCP, "Progress")."""
        self.done, self.total = done, total
        if done > self._notified:
            self._notified = done
            await self._notify(done, total, message)
