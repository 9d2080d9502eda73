"""The limits of a process: how many requests of a client, or of another key, in a moving window of time or at once.

Limits are used on the event loop of their process only, so nothing is locked. Each process counts in memory and allows
its share of a rate: the rate divided by the number of workers. If the settings name a Redis or Valkey server, the
workers of all nodes count there together, and a process counts for itself only while that server does not answer
(docs/decisions/0021-limits.md).
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from gatehouse.shared.service.metrics import Counter
from gatehouse.shared.service.rates import Rate
from gatehouse.shared.service.settings import ServerSettings
from gatehouse.shared.service.shared_counts import SharedCounts

MAX_KEYS: Final = 10_000
"""Keys of one limit that a process counts. The one that was used the longest ago makes room for another."""

_CONCURRENCY_WAIT: Final = 1
"""Seconds after which a client that has too many calls in flight may try again. Nobody knows when one of them ends."""


class Exceeded(NamedTuple):
    """A request that a limit does not allow now."""

    limit: str
    """The name of the limit."""
    allowed: str
    """What the limit allows, such as 60/minute."""
    wait: int
    """Whole seconds after which the next request is allowed, at least 1."""


class MovingWindow:
    """Counts the requests of each key in the seconds before now, exactly: no border of a window can be exploited."""

    def __init__(self, rate: Rate, monotonic: Callable[[], float], *, size: int = MAX_KEYS) -> None:
        self._rate = rate
        self._seconds = rate.seconds
        self._monotonic = monotonic
        self._size = size
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        """The times of each key's allowed requests, oldest first. The key that was used last is the last one."""

    def __len__(self) -> int:
        return len(self._times)

    def hit(self, key: str) -> float:
        """Count a request, if it is allowed. Return 0, or the seconds until the next one of the key is allowed."""
        now = self._monotonic()
        begin = now - self._seconds
        times = self._times.get(key)
        if times is None:
            self._make_room(begin)
            times = self._times[key] = deque()
        else:
            self._times.move_to_end(key)
        while times and times[0] <= begin:
            times.popleft()
        if len(times) >= self._rate.requests:
            return times[0] - begin
        times.append(now)
        return 0.0

    def peek(self, key: str) -> float:
        """Return what `hit` would, and count nothing."""
        times = self._times.get(key)
        if times is None or len(times) < self._rate.requests:
            return 0.0
        return max(times[0] - (self._monotonic() - self._seconds), 0.0)

    def _make_room(self, begin: float) -> None:
        """Remove the keys that have no request after `begin`, and one more if there are too many."""
        while self._times:
            key, times = next(iter(self._times.items()))
            if times[-1] > begin and len(self._times) < self._size:
                return
            del self._times[key]


class Limit:
    """One limit, which decides about the requests of each key."""

    def __init__(self, name: str, rate: Rate, window: MovingWindow, shared: SharedCounts | None) -> None:
        self.name = name
        self._rate = rate
        self._window = window
        self._shared = shared

    async def hit(self, key: str) -> Exceeded | None:
        """Count a request of a key. None if it is allowed; otherwise it is not counted."""
        if not self._rate.requests:
            return None
        wait = await self._shared.hit(self.name, self._rate, key) if self._shared is not None else None
        return self._exceeded(self._window.hit(key) if wait is None else wait)

    async def peek(self, key: str) -> Exceeded | None:
        """Return what `hit` would, and count nothing. Requests at the same time may all be allowed by this."""
        if not self._rate.requests:
            return None
        wait = await self._shared.peek(self.name, self._rate, key) if self._shared is not None else None
        return self._exceeded(self._window.peek(key) if wait is None else wait)

    def _exceeded(self, wait: float) -> Exceeded | None:
        return Exceeded(self.name, str(self._rate), math.ceil(wait)) if wait > 0 else None


class InFlight:
    """The requests of each key that this process has not answered yet."""

    def __init__(self, name: str, most: int) -> None:
        """Allow at most `most` requests of a key at once; any number if that is 0."""
        self._name = name
        self._most = most
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def enter(self, key: str) -> Exceeded | None:
        """Count a request that begins. None if it is allowed; only then must `leave` be called when it ends."""
        number = self._numbers.get(key, 0)
        if 0 < self._most <= number:
            return Exceeded(self._name, f"{self._most} at once", _CONCURRENCY_WAIT)
        self._numbers[key] = number + 1
        return None

    def leave(self, key: str) -> None:
        """Count a request that ended."""
        if self._numbers[key] == 1:
            del self._numbers[key]
        else:
            self._numbers[key] -= 1


class Limits:
    """Creates the limits of one process."""

    def __init__(self, workers: int, shared: SharedCounts | None, monotonic: Callable[[], float]) -> None:
        """Create none yet. `workers` is the number of processes that share each rate."""
        self.shared = shared
        self._workers = workers
        self._monotonic = monotonic

    def limit(self, name: str, rate: Rate) -> Limit:
        """Create a limit. Its name is part of a setting's name, and of the audit events of what it refuses."""
        return Limit(name, rate, MovingWindow(rate.share(self._workers), self._monotonic), self.shared)

    async def close(self) -> None:
        """Close the connections to the shared counts."""
        if self.shared is not None:
            await self.shared.close()


def create_limits(
    settings: ServerSettings, owner: str, fallbacks: Counter, monotonic: Callable[[], float] = time.monotonic
) -> Limits:
    """Return the limits of a process.

    Servers with the same `owner`, a URL, share the counts at the settings' URL. `fallbacks` counts the requests that
    the process counts for itself instead.
    """
    url = settings.limits_url
    shared = SharedCounts(url, owner, fallbacks, monotonic) if url is not None else None
    return Limits(settings.workers, shared, monotonic)
