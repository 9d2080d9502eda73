"""Time is a parameter: code that depends on it is given a clock."""

import time
from datetime import UTC, datetime
from typing import Protocol

LEEWAY = 30
"""Seconds of clock difference tolerated between two hosts (RFC 7519 4.1.4 allows "a few minutes")."""


class Clock(Protocol):
    """A callable that returns the current time."""

    def __call__(self) -> float:
        """Return seconds since 1970-01-01T00:00:00Z (NumericDate, RFC 7519 2)."""
        ...


system_clock: Clock = time.time


def iso_time(seconds: float, timespec: str = "seconds") -> str:
    """Return an RFC 3339 time in UTC, to the second, or to the `milliseconds`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
