"""Records refusals in the audit log: each before its response, except those of an exceeded limit.

A client that exceeds a limit may go on for hours. The first such refusal is recorded at once, as any other. The further
ones of the same limit, client, address and action are counted, and each minute has one event with their number. The
log line of each request has its id and its reason.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic as system_monotonic
from typing import Final

import structlog

from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.limits import Exceeded
from gatehouse.shared.service.metrics import Counter, Series

INTERVAL: Final = 60.0
"""Seconds between two events of one aggregate."""

MAX_OPEN: Final = 1024
"""Aggregates of one process. The oldest one is closed to make room, and its number is recorded then."""

_FLUSH_INTERVAL: Final = 1.0

_Key = tuple[str, AuditAction, str | None, str]

log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _Aggregate:
    event: AuditEvent
    """The event of the number of refusals, without the number."""
    since: float
    count: int = 0


class RefusalRecorder:
    """Records the refusals of one process. All methods must be called on its event loop."""

    def __init__(
        self,
        audit: AuditWriter,
        rate_limited: Series[Counter],
        monotonic: Callable[[], float] = system_monotonic,
        *,
        size: int = MAX_OPEN,
    ) -> None:
        """Create the recorder. `rate_limited` counts the refusals of each limit."""
        self._audit = audit
        self._rate_limited = rate_limited
        self._monotonic = monotonic
        self._size = size
        self._open: OrderedDict[_Key, _Aggregate] = OrderedDict()
        """Those whose interval ends first come first."""

    async def record(self, event: AuditEvent, exceeded: Exceeded | None = None, address: str = "") -> None:
        """Return when the event is on disk or, as one of many past a limit, has been counted.

        Args:
            event: the refusal.
            exceeded: the limit that refused it; None for any other refusal.
            address: the source address.

        Raises:
            AuditUnavailable: it could not be written.
        """
        if exceeded is None:
            await self._audit.commit_async(event)
            return
        self.flush()
        # That of one tool has its name after a colon.
        self._rate_limited[(exceeded.limit.partition(":")[0],)].inc()
        key = exceeded.limit, event.action, event.actor, address
        if (known := self._open.get(key)) is not None:
            known.count += 1
            return
        if len(self._open) >= self._size:
            _, oldest = self._open.popitem(last=False)
            self._write(oldest)
        about = {"limit": exceeded.limit, "allowed": exceeded.allowed, "address": address}
        counted = AuditEvent(
            event.action,
            event.outcome,
            actor=event.actor,
            reason=f"further requests exceeded the limit {exceeded.limit}",
            detail=about,
        )
        opened = self._open[key] = _Aggregate(counted, self._monotonic())
        try:
            await self._audit.commit_async(event._replace(detail={**event.detail, **about}))
        except AuditUnavailable:
            opened.count += 1
            raise

    def flush(self) -> None:
        """Record the numbers of the aggregates whose interval has passed, and close those that counted nothing."""
        now = self._monotonic()
        while self._open:
            key, oldest = next(iter(self._open.items()))
            if now - oldest.since < INTERVAL:
                return
            del self._open[key]
            if oldest.count:
                self._write(oldest)
                oldest.since = now
                self._open[key] = oldest

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Flush regularly until the block ends, and then record every number that is left."""
        flushing = asyncio.create_task(self._flush_regularly())
        try:
            yield
        finally:
            flushing.cancel()
            for aggregate in self._open.values():
                self._write(aggregate)
            self._open.clear()

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_INTERVAL)
            self.flush()

    def _write(self, aggregate: _Aggregate) -> None:
        """Record the number of an aggregate, and start again from 0. It is kept if it cannot be recorded now."""
        event, count = aggregate.event, aggregate.count
        if not count:
            return
        try:
            self._audit.record(event._replace(detail={**event.detail, "count": count}))
        except AuditUnavailable as error:
            log.error("refusals cannot be recorded", limit=event.detail["limit"], count=count, error=str(error))
            return
        aggregate.count = 0
