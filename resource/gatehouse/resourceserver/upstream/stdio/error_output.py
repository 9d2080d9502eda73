"""The standard error of a program, which goes to the log at a limited rate."""

import asyncio
from collections.abc import Callable
from typing import Final

from gatehouse.resourceserver.upstream.stdio.pipes import LineReader
from gatehouse.resourceserver.upstream.stdio.throttles import Allowance, LimitedLog
from gatehouse.shared.protocol.redaction import printable

_MAX_LINE: Final = 500
"""Characters of a line that are logged."""

_BURST: Final = 1024 * 1024
_BYTES_A_SECOND: Final = 256 * 1024
"""How much is read. A program that writes more than this waits, and does not keep the gateway busy."""

_LINE_COST: Final = 100
"""Bytes that a line counts as, besides those that it has: short lines take more time."""


class ErrorOutput:
    """Reads the standard error of a program, and logs it."""

    def __init__(self, descriptor: int, write: Callable[[str], None]) -> None:
        """Read from a descriptor that does not block, and that the caller closes after `close`.

        `write` is called with a text for the log.
        """
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._log = LimitedLog(write)
        # Four bytes are the longest character of UTF-8.
        self._lines = LineReader(descriptor, 4 * _MAX_LINE, self._add, self._add_start, 4 * _MAX_LINE)
        self._allowance = Allowance(_BURST, _BYTES_A_SECOND)
        self._cost = 0
        self._paused: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Log what the pipe still contains, and read nothing more."""
        self._pause()
        if self._paused is not None:
            self._paused.cancel()
        self._lines.drain(_BURST)
        self._log.report()

    def _resume(self) -> None:
        self._loop.add_reader(self._descriptor, self._read)

    def _pause(self) -> None:
        self._loop.remove_reader(self._descriptor)

    def _read(self) -> None:
        count = self._lines.read()
        if count == 0:
            self._pause()
        elif count is not None and not self._allowance.spend(count + self._cost):
            self._pause()
            self._paused = self._loop.call_later(self._allowance.due_in, self._resume)
        self._cost = 0

    def _add(self, line: bytes) -> None:
        self._cost += _LINE_COST
        self._log.add(printable(line.decode(errors="replace").rstrip()[:_MAX_LINE])[:_MAX_LINE])

    def _add_start(self, start: bytes, _: bytes) -> None:
        self._add(start)
