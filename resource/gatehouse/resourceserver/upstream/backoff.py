"""When a program that failed may be started again: after 1, 2, 4 ... 60 seconds."""

from collections.abc import Callable
from typing import Final

from gatehouse.resourceserver.upstream.upstream import UpstreamUnavailable

_LONGEST: Final = 60
"""Seconds: the longest pause, and how long a program must have run for its next failure to count as the first."""


class Backoff:
    """The failures of a program in a row, and the pause after the last one."""

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
