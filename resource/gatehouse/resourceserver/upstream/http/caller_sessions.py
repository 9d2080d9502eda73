"""The sessions of callers at a stateful upstream, as one worker uses them: opened, found, replaced and ended."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

import anyio

from gatehouse.resourceserver.catalogue.policy_file import UpstreamSettings
from gatehouse.resourceserver.upstream.http.response import NotAccepted
from gatehouse.resourceserver.upstream.http.session_store import (
    IDLE,
    TOUCH_INTERVAL,
    Connection,
    SessionStore,
    SharedSession,
)
from gatehouse.resourceserver.upstream.upstream import Caller, UpstreamError

ResultT = TypeVar("ResultT")

_UNKNOWN_SESSION: Final = 404
"""The status for a session that has ended (MCP 2025-11-25, "Session Management")."""

_BAD_REQUEST: Final = 400
"""Many servers answer so to a session that they do not know: those made of the examples of the TypeScript SDK."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Cached:
    connection: Connection
    used_at: float


class CallerSessions:
    """The sessions of one upstream. Calls find theirs in memory; what the database has is looked up when it is needed.

    Another worker may have replaced or ended a session. The upstream then no longer knows it, and says so before it
    executes anything.
    """

    def __init__(
        self,
        store: SessionStore,
        upstream: str,
        settings: UpstreamSettings,
        *,
        open_: Callable[[], Awaitable[Connection]],
        end: Callable[[Connection], None],
        is_known: Callable[[Connection], Awaitable[bool]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it, without a session.

        Args:
            store: the sessions of all workers and nodes.
            upstream: the digest of the upstream.
            settings: how many sessions there may be, and for how long.
            open_: opens a session at the upstream. Raises UpstreamError.
            end: ends a session at the upstream, in the background.
            is_known: asks the upstream whether it knows a session. Raises UpstreamError.
            monotonic: seconds of a monotonic clock.
        """
        self._store = store
        self._upstream = upstream
        self._limit = settings.max_sessions
        self._idle_timeout = settings.idle_timeout
        self._open = open_
        self._end = end
        self._is_known = is_known
        self._monotonic = monotonic
        self._cache: dict[Caller, _Cached] = {}
        self._calls: Counter[Caller] = Counter()
        self._opening: WeakValueDictionary[Caller, asyncio.Lock] = WeakValueDictionary()
        self._touched_at = monotonic()

    async def run(self, caller: Caller, send: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        """Call `send` with the session of a caller. Call it once more if the upstream has ended that session.

        Raises:
            UpstreamError: `send` raised it, or there is no session.
        """
        self._calls[caller] += 1
        try:
            connection = await self._session(caller, None)
            try:
                return await send(connection)
            except NotAccepted as error:
                if not await self._has_ended(connection, error.status):
                    raise
            return await send(await self._session(caller, connection))
        finally:
            self._calls[caller] -= 1
            if not self._calls[caller]:
                del self._calls[caller]

    async def _has_ended(self, connection: Connection, status: int) -> bool:
        return status == _UNKNOWN_SESSION or (status == _BAD_REQUEST and not await self._is_known(connection))

    async def _session(self, caller: Caller, ended: Connection | None) -> Connection:
        """Return the session of a caller, other than one that has ended."""
        cached = self._cache.get(caller)
        if cached is None or cached.connection is ended:
            # The dictionary forgets a lock that no call holds or waits for.
            async with self._opening.setdefault(caller, asyncio.Lock()):
                cached = await self._opened_once(caller, ended)
        cached.used_at = self._monotonic()
        return cached.connection

    async def _opened_once(self, caller: Caller, ended: Connection | None) -> _Cached:
        """Return what another call has opened while this one waited, or open it."""
        cached = self._cache.get(caller)
        if cached is None or cached.connection is ended:
            cached = self._cache[caller] = _Cached(await self._find_or_open(caller, ended), self._monotonic())
        return cached

    async def _find_or_open(self, caller: Caller, ended: Connection | None) -> Connection:
        found = await self._store.find(self._upstream, caller, self._limit)
        if found is not None:
            if ended is None:
                return found
            # Another worker has replaced the session, perhaps before the upstream ended that one too.
            if found.session_id != ended.session_id and await self._is_known(found):
                return found
        return await self._replace(caller, found)

    async def _replace(self, caller: Caller, stale: Connection | None) -> Connection:
        opened = await self._open()
        try:
            stale_id = None if stale is None else stale.session_id
            kept = await self._store.put(self._upstream, caller, opened, stale_id, self._limit)
        except SharedSession:
            # It is the session of another caller, who still uses it.
            raise
        except BaseException:
            self._end(opened)
            raise
        if kept.connection is not opened:
            self._end(opened)
        for idle in kept.ended:
            self._end(idle)
        return kept.connection

    async def maintain_regularly(self, sleep: Callable[[float], Awaitable[Any]] = anyio.sleep) -> None:
        """Maintain the sessions once a minute, forever."""
        while True:
            await sleep(TOUCH_INTERVAL)
            await self.maintain()

    async def maintain(self) -> None:
        """Write which sessions were used, and end those that nobody used. A failure is logged."""
        now = self._monotonic()
        used = [caller for caller, cached in self._cache.items() if cached.used_at >= self._touched_at]
        try:
            await self._store.touch(self._upstream, {*used, *self._calls})
            ended = await self._store.prune(self._upstream, self._idle_timeout)
        except Exception as error:  # noqa: BLE001 - any exception would end the loop, and no session would be maintained
            reason = str(error) if isinstance(error, UpstreamError) else type(error).__name__
            log.error("the sessions of the upstream were not maintained: %s", reason)
            return
        self._touched_at = now
        for connection in ended:
            self._end(connection)
        unused_since = now - max(self._idle_timeout, IDLE)
        self._cache = {
            caller: cached
            for caller, cached in self._cache.items()
            if cached.used_at > unused_since or caller in self._calls
        }
