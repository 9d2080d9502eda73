"""How far a streaming tool is, for a caller that asked to be told."""

from collections.abc import Awaitable, Callable

Notify = Callable[[float, float | None, str | None], Awaitable[None]]
"""Sends a progress notification: progress, total, message. Does nothing for a caller that sent no progressToken."""


class Progress:
    """The progress of one call."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._told = -1
        self.done = 0
        """Items that the call is through with."""
        self.total: int | None = None
        """Items that it has to do; None until it reported."""

    async def report(self, done: int, total: int, message: str | None = None) -> None:
        """Tell that `done` of `total` items are finished. Not from within a transaction: a slow reader holds it up.

        Each notification says more than the one before (MCP, "Progress"), so what does not is only kept.
        """
        self.done, self.total = done, total
        if done > self._told:
            self._told = done
            await self._notify(done, total, message)
