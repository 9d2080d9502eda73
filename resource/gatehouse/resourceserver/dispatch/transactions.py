"""Short transactions for a tool that works for long, each with its audit event.

SQLite has one writer: a tool that held a transaction for as long as it works would keep all others waiting.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from sqlalchemy import event, insert, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from gatehouse.directory.directory import Directory, open_directory
from gatehouse.directory.errors import DirectoryError
from gatehouse.directory.identifiers import is_identifier
from gatehouse.resourceserver.db.database import AsyncDatabase
from gatehouse.shared.protocol import token_validation
from gatehouse.shared.protocol.claims import AccessClaims, InvalidClaims
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.audit import AuditEvent, AuditRows
from gatehouse.shared.service.responses import UNAVAILABLE

LISTED: Final = 100
"""Identifiers in one audit event. A transaction that changes more has several events."""

log = logging.getLogger(__name__)


class TransactionFailed(DirectoryError):
    """The database did not take a transaction, or did not say whether it did."""

    def __init__(self) -> None:
        super().__init__(UNAVAILABLE)


class TokenExpired(DirectoryError):
    """The caller's rights ended while its call went on."""

    def __init__(self) -> None:
        super().__init__("The access token expired meanwhile. Obtain a new one, and repeat the call.")


class Transactions:
    """The transactions of one call."""

    def __init__(
        self,
        database: AsyncDatabase,
        claims: AccessClaims,
        clock: Clock,
        rows: AuditRows,
        make_event: Callable[[Mapping[str, Any]], AuditEvent],
    ) -> None:
        """`make_event` makes an event of the call, from its detail."""
        self._database = database
        self._claims = claims
        self._clock = clock
        self._rows = rows
        self._make_event = make_event
        self._count = 0

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Directory]:
        """Open the caller's workspace in a transaction that commits when the block ends, together with its event.

        The block is not interrupted: when the call is cancelled meanwhile, this transaction ends as it would have,
        and the next one does not begin.

        Raises:
            TokenExpired: a caller that reads slowly could stretch a call beyond its token's life.
            NoWorkspace: the token names no workspace, or one that does not exist.
            TransactionFailed: nothing was changed, unless the database was lost in the moment of the commit.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        now = self._clock()
        try:
            token_validation.check_time(self._claims, now)
        except InvalidClaims:
            raise TokenExpired from None
        try:
            async with self._database.write() as session:
                changed = _watch(session)
                yield await open_directory(session, self._claims, now)
                await session.flush()
                await self._record_changes(session, list(changed))
        except SQLAlchemyError as error:
            log.error("a transaction of a streaming tool failed: %s", type(error).__name__)
            raise TransactionFailed from error

    async def _record_changes(self, session: AsyncSession, identifiers: list[str]) -> None:
        self._count += 1
        details = (
            {"transaction": self._count, "changed": identifiers[start : start + LISTED]}
            for start in range(0, max(len(identifiers), 1), LISTED)
        )
        events = [self._rows.values(self._make_event(detail)) for detail in details]
        await session.execute(insert(self._rows.table), events)


def _watch(session: AsyncSession) -> dict[str, None]:
    """Collect the identifiers of every row that the session makes, changes or deletes, in their order."""
    changed: dict[str, None] = {}

    @event.listens_for(session.sync_session, "after_flush")
    def collect(flushed: Session, _: object) -> None:
        for row in (*flushed.new, *flushed.dirty, *flushed.deleted):
            keys = inspect(row).mapper.primary_key_from_instance(row)
            changed.update((key, None) for key in keys if is_identifier(key))

    return changed
