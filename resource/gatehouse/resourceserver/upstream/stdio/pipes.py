"""The pipes to a program: lines are written and read without waiting, and what is kept of them is bounded."""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Final

_READ: Final = 16 * 1024
"""Bytes that are read at a time. If each is a line, the event loop is kept for some milliseconds."""


class Line:
    """A line that is written to a program."""

    __slots__ = ("begun", "rest")

    def __init__(self, text: bytes) -> None:
        self.rest = memoryview(text + b"\n")
        self.begun = False
        """Whether the program may have read a part of it."""


class LineWriter:
    """Writes lines to a pipe. What the pipe does not accept at once is kept, and written when the program reads."""

    def __init__(self, descriptor: int, broken: Callable[[], None]) -> None:
        """Write to a descriptor that does not block, and that the caller closes after `close`.

        `broken` is called if the program has closed its end.
        """
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._broken = broken
        self._lines: deque[Line] = deque()
        self._open = True
        self._waiting = False
        self.unsent = 0
        """Bytes that are kept."""

    def write(self, text: bytes) -> Line:
        """Write a line, now or later; never after `close`."""
        line = Line(text)
        if not self._open:
            return line
        self._lines.append(line)
        self.unsent += len(line.rest)
        if len(self._lines) == 1:
            self._flush()
        return line

    def withdraw(self, line: Line) -> None:
        """Do not write a line of which no part has been written."""
        self._lines.remove(line)
        self.unsent -= len(line.rest)

    def close(self) -> None:
        """Write nothing more. Lines that were not written can still be withdrawn."""
        if self._open:
            self._open = False
            # Not again later, when another pipe may have the same descriptor.
            self._wait(False)

    def _flush(self) -> None:
        while self._lines:
            line = self._lines[0]
            try:
                count = os.write(self._descriptor, line.rest)
            except BlockingIOError:
                self._wait(True)
                return
            except OSError:
                self.close()
                self._broken()
                return
            line.begun = True
            line.rest = line.rest[count:]
            self.unsent -= count
            if not line.rest:
                self._lines.popleft()
        self._wait(False)

    def _wait(self, waiting: bool) -> None:
        """Wait until the pipe accepts more, or no longer."""
        if waiting and not self._waiting:
            self._loop.add_writer(self._descriptor, self._flush)
        elif self._waiting and not waiting:
            self._loop.remove_writer(self._descriptor)
        self._waiting = waiting


class LineReader:
    """Reads lines from a pipe, up to a length. Of a longer line, only its ends are kept."""

    def __init__(
        self,
        descriptor: int,
        max_length: int,
        deliver: Callable[[bytes], None],
        deliver_ends: Callable[[bytes, bytes], None],
        kept: int = 256,
    ) -> None:
        """Read from a descriptor that does not block.

        Args:
            descriptor: of the pipe.
            max_length: bytes of a line, without its line feed.
            deliver: called with each line.
            deliver_ends: called with the first and the last bytes of a line that is too long.
            kept: how many these are, each.
        """
        self._descriptor = descriptor
        self._max_length = max_length
        self._deliver = deliver
        self._deliver_ends = deliver_ends
        self._kept = kept
        self._line = bytearray()
        self._start = b""
        self.length = 0
        """Bytes of the line that has not ended yet."""

    def read(self) -> int | None:
        """Read once. Return the number of bytes: 0 if the pipe has ended, None if it is empty."""
        try:
            data = os.read(self._descriptor, _READ)
        except BlockingIOError:
            return None
        *complete, rest = data.split(b"\n")
        for part in complete:
            self._extend(part)
            self._finish()
        self._extend(rest)
        return len(data)

    def drain(self, limit: int) -> None:
        """Read what is in the pipe, and at most about `limit` bytes: another process may write to it without end."""
        while limit > 0 and (count := self.read()):
            limit -= count

    def discard(self) -> None:
        """Deliver nothing more."""
        self._deliver = lambda _: None
        self._deliver_ends = lambda *_: None

    def _extend(self, part: bytes) -> None:
        self.length += len(part)
        self._line += part
        if self.length > self._max_length:
            self._start = self._start or bytes(self._line[: self._kept])
            del self._line[: -self._kept]

    def _finish(self) -> None:
        line, start, too_long = bytes(self._line), self._start, self.length > self._max_length
        self._line.clear()
        self._start, self.length = b"", 0
        if too_long:
            self._deliver_ends(start, line)
        else:
            self._deliver(line)
