"""How often a program may be started, write, and be quoted in the log."""

import time
from collections.abc import Callable
from typing import Final

from gatehouse.resourceserver.upstream.upstream import UpstreamUnavailable

_LONGEST: Final = 60
"""Seconds: the longest pause, and how long a program must have run for its next failure to count as the first."""

_LINES_A_SECOND: Final = 10
"""Lines that are logged. More are counted."""


class Backoff:
    """When a program that failed may be started again: after 1, 2, 4 ... 60 seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._failures = 0
        self._until = self._started = float("-inf")

    def check(self) -> None:
        """Note that the program is being started. Raises UpstreamUnavailable: it may not be started yet."""
        now = self._monotonic()
        if now < self._until:
            raise UpstreamUnavailable(f"the program failed, and is not started again for {self._until - now:.0f} s")
        self._started = now

    def fail(self) -> None:
        """Note that the program failed."""
        now = self._monotonic()
        if now - self._started > _LONGEST:
            self._failures = 0
        self._until = now + min(2**self._failures, _LONGEST)
        self._failures = min(self._failures + 1, _LONGEST)

    def succeed(self) -> None:
        """Forget all failures."""
        self._failures = 0


class Allowance:
    """How much of something is allowed: a burst, and then an amount a second."""

    def __init__(self, burst: int, rate: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._rate = rate
        self._monotonic = monotonic
        self._left = float(burst)
        self._at = monotonic()

    def spend(self, amount: int = 1) -> bool:
        """Count an amount. Return whether it is allowed."""
        now = self._monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - amount
        self._at = now
        return self._left >= 0

    @property
    def due_in(self) -> float:
        """Seconds after which more is allowed, counted from the last `spend`."""
        return max(0.0, -self._left / self._rate)


class LimitedLog:
    """Writes some lines a second to the log, and then how many more there were."""

    def __init__(
        self,
        write: Callable[[str], None],
        lines_a_second: int = _LINES_A_SECOND,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._lines_a_second = lines_a_second
        self._monotonic = monotonic
        self._second = monotonic()
        self._written = self._dropped = 0

    def add(self, line: str) -> None:
        """Write a line, or count it."""
        now = self._monotonic()
        if now - self._second >= 1:
            self.report()
            self._second, self._written = now, 0
        if self._written < self._lines_a_second:
            self._written += 1
            self._write(line)
        else:
            self._dropped += 1

    def report(self) -> None:
        """Write how many lines were only counted, if any."""
        if self._dropped:
            self._write(f"({self._dropped} more lines, which are not logged)")
            self._dropped = 0
