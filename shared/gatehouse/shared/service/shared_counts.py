"""Counts that the workers of all nodes share, on a Redis or Valkey server.

A limit must not become an outage: if the server is away, or takes longer than WAIT, the caller counts in its own
process, and nothing waits for the server again until PAUSE has passed. The library `limits` has the window, as a script
that the server runs. It is imported only if it is used, because the client takes long to import.
"""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from gatehouse.shared.service.metrics import Counter
from gatehouse.shared.service.rates import Rate

if TYPE_CHECKING:
    from limits import RateLimitItem

WAIT: Final = 0.05
"""Seconds that a request may wait for the server."""

PAUSE: Final = 1.0
"""Seconds after a failure without another attempt. Then one request tries again, while the others do not wait."""

MAX_DELAY: Final = 0.005
"""Seconds by which the event loop ends a wait late, at most, unless its process is busy."""

_CONNECTIONS: Final = 8
"""Connections of one process, at most. A burst waits in line for one of them, instead of opening more."""

_KEY_PREFIX: Final = "gatehouse"

log = logging.getLogger(__name__)


def shown_limits_url(value: str) -> str:
    """Return the URL without user and password."""
    parts = urlsplit(value)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def redis_url(value: str) -> str:
    """Return the URL as the client reads it. Both servers speak the same protocol."""
    return re.sub(r"^valkey", "redis", value)


def ping(url: str) -> str | None:
    """Connect to the server, and wait at most a second. Return the name of what failed, or None."""
    from redis import Redis, RedisError  # noqa: PLC0415

    try:
        with Redis.from_url(redis_url(url), socket_connect_timeout=1, socket_timeout=1) as client:
            client.ping()
    except (RedisError, OSError) as error:
        return type(error).__name__
    return None


class SharedCounts:
    """The counts of all nodes, as one process sees them."""

    def __init__(self, url: str, owner: str, fallbacks: Counter, monotonic: Callable[[], float]) -> None:
        """Prepare to count. `owner` separates the counts of servers that use one Redis for different purposes.

        `fallbacks` counts the requests for which the server does not answer.
        """
        # Here and not at the first request, which would wait for the imports.
        from limits import RateLimitItemPerSecond  # noqa: PLC0415
        from limits.aio.storage import RedisStorage  # noqa: PLC0415
        from limits.aio.strategies import MovingWindowRateLimiter  # noqa: PLC0415
        from redis.asyncio import ConnectionPool  # noqa: PLC0415

        self._fallbacks = fallbacks
        self._url = redis_url(url)
        self._owner = owner
        self._monotonic = monotonic
        # The library's signature does not allow a pool, which its documentation names.
        options: dict[str, Any] = {"max_connections": _CONNECTIONS, "driver_info": None}
        pool: Any = ConnectionPool.from_url(self._url, **options)
        self._pool = pool
        storage = RedisStorage(f"async+{self._url}", implementation="redispy", connection_pool=pool)
        self._windows = MovingWindowRateLimiter(storage)
        self._item = RateLimitItemPerSecond
        self._connections = asyncio.Semaphore(_CONNECTIONS)
        self._away = False
        self._retry_at = 0.0
        self._unanswered_since: float | None = None
        """When the first request ended late without an answer, after the last one that was answered."""

    async def hit(self, limit: str, rate: Rate, key: str) -> float | None:
        """Count a request of a key. Return 0, or the seconds until one is allowed; None without an answer."""
        return await self._ask(self._hit, limit, rate, key)

    async def peek(self, limit: str, rate: Rate, key: str) -> float | None:
        """Return what `hit` would, and count nothing."""
        return await self._ask(self._peek, limit, rate, key)

    async def _ask(
        self, ask: "Callable[[RateLimitItem, str], Awaitable[float]]", limit: str, rate: Rate, key: str
    ) -> float | None:
        # The time that requests wait here does not count as the server's. Each answer lets one of them go on. After a
        # failure, all of them find that the server is away.
        async with self._connections:
            if self._is_paused():
                self._fallbacks.inc()
                return None
            timeout = asyncio.timeout(WAIT)
            try:
                async with timeout:
                    wait = await ask(self._item(rate.requests, rate.seconds, _KEY_PREFIX), self._key(limit, key))
            except Exception as error:  # noqa: BLE001 - whatever the library raises, the request is decided
                self._fallbacks.inc()
                if not self._is_own_delay(timeout):
                    self._fail(error)
                return None
        self._unanswered_since = None
        if self._away:
            self._away = False
            log.warning("limits: %s answers again", shown_limits_url(self._url))
        return wait

    def _is_paused(self) -> bool:
        """Tell whether a request must not ask the server. While it is away, only one request in each PAUSE may."""
        if not self._away:
            return False
        now = self._monotonic()
        if now < self._retry_at:
            return True
        self._retry_at = now + PAUSE
        return False

    def _is_own_delay(self, timeout: asyncio.Timeout) -> bool:
        """Tell whether an answer may be missing only because this process was too busy to read it.

        If so, the event loop has ended the wait late as well. Without any answer for PAUSE, the server is away all the
        same.
        """
        end = timeout.when()
        if end is None or not timeout.expired() or asyncio.get_running_loop().time() - end <= MAX_DELAY:
            return False
        now = self._monotonic()
        if self._unanswered_since is None:
            self._unanswered_since = now
        return now - self._unanswered_since < PAUSE

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    def _key(self, limit: str, key: str) -> str:
        """Return a digest: a key may have any length and any character, and the server need not know clients."""
        text = f"{self._owner}\n{limit}\n{key}"
        return hashlib.sha256(text.encode()).hexdigest()

    async def _hit(self, item: "RateLimitItem", key: str) -> float:
        if await self._windows.hit(item, key):
            return 0.0
        window = await self._windows.get_window_stats(item, key)
        return max(window.reset_time - time.time(), 1.0)

    async def _peek(self, item: "RateLimitItem", key: str) -> float:
        window = await self._windows.get_window_stats(item, key)
        return 0.0 if window.remaining > 0 else max(window.reset_time - time.time(), 1.0)

    def _fail(self, error: Exception) -> None:
        self._retry_at = self._monotonic() + PAUSE
        if not self._away:
            self._away = True
            log.error(
                "limits: %s does not answer (%s); each process allows its share until it does",
                shown_limits_url(self._url),
                type(error).__name__,
            )
