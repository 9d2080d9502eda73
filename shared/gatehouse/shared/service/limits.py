"""Creates the limits of a process (requests.py) from its settings.

Each process counts in memory and allows its share of a rate: the rate divided by the number of workers. If the settings
name a Redis or Valkey server, the workers of all nodes count there together, and a process counts for itself only while
that server does not answer (docs/decisions/0021-limits.md).
"""

import time
from collections.abc import Callable

from gatehouse.shared.service.metrics import Counter
from gatehouse.shared.service.rates import Rate
from gatehouse.shared.service.requests import Limit, MovingWindow
from gatehouse.shared.service.settings import ServerSettings
from gatehouse.shared.service.shared_counts import SharedCounts


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
