"""Rates, as settings and tools declare them: `60/minute`, or `off`."""

import math
import re
from typing import Final, NamedTuple

_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600}

_RATE = re.compile(r"([1-9][0-9]{0,6})/(second|minute|hour)", re.ASCII)


class Rate(NamedTuple):
    """A number of requests in a unit of time. 0 requests stand for no limit."""

    requests: int
    unit: str

    @property
    def seconds(self) -> int:
        """The length of the window in which the requests are counted."""
        return _SECONDS[self.unit]

    def share(self, workers: int) -> "Rate":
        """Return the part of one of several workers, rounded up."""
        return Rate(math.ceil(self.requests / workers), self.unit)

    def __str__(self) -> str:
        return f"{self.requests}/{self.unit}" if self.requests else "off"


UNLIMITED: Final = Rate(0, "minute")


def parse_rate(text: str) -> Rate:
    """Read a rate; `off` and `0` stand for no limit. Raises ValueError."""
    if text in {"off", "0"}:
        return UNLIMITED
    if (found := _RATE.fullmatch(text)) is None:
        raise ValueError("must be NUMBER/second, NUMBER/minute or NUMBER/hour, such as 60/minute, or off")
    return Rate(int(found[1]), found[2])
