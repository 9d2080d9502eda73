"""The resource server's database: asynchronous for requests, synchronous for commands and the audit writer."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from sqlalchemy import URL, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.shared.service import migrations
from gatehouse.shared.service.database import LOCK_TIMEOUT, READ_ONLY, open_async_engine
from gatehouse.shared.service.deadline import remaining
from gatehouse.shared.service.migrations import MigratedDatabase, Schema, SchemaMismatch


class Database(MigratedDatabase):
    """The gateway's tables, and those of the catalogue that it serves."""

    schema = Schema("gatehouse.resourceserver.db:migrations", "resourceserver init", landmark="idempotency_key")

    def __init__(self, url: URL, catalogue_schema: Schema | None = None) -> None:
        """Without the schema of a catalogue, only the gateway's tables are migrated and checked."""
        super().__init__(url)
        self.catalogue_schema = catalogue_schema

    def migrate(self) -> None:
        """Create or upgrade both schemas. Raises SchemaMismatch as MigratedDatabase does."""
        self._require_own_version_table()
        super().migrate()
        if self.catalogue_schema is not None:
            migrations.upgrade(self.url, self.catalogue_schema)

    def require_current(self) -> None:
        """Refuse a database if either schema is not current. Raises SchemaMismatch as MigratedDatabase does."""
        self._require_own_version_table()
        super().require_current()
        if self.catalogue_schema is not None:
            migrations.require_current(self.engine, self.catalogue_schema)

    def _require_own_version_table(self) -> None:
        """Refuse a catalogue whose revisions would be confused with the gateway's: its tables would never be made."""
        if self.catalogue_schema is not None and self.catalogue_schema.version_table == self.schema.version_table:
            raise SchemaMismatch(
                f"The catalogue's Schema uses the gateway's version table, {self.schema.version_table}. Give it a "
                f'table of its own: Schema("{self.catalogue_schema.migrations}", ..., version_table="NAME_version")'
            )


_CONNECTIONS: Final = 5
"""Connections of one process."""


class CommitUnknown(Exception):
    """The database did not report whether it committed a transaction."""

    def __init__(self) -> None:
        super().__init__("the database did not report whether the transaction was committed")


class AsyncDatabase:
    """The same database on an event loop: the connections of one process for requests.

    A task whose scope is cancelled within a session finishes the session first. `Task.cancel()`, with which gunicorn
    ends a call that outlives its closed connection, passes that shield: SQLAlchemy then closes the connection in the
    middle of a statement, and the transaction is rolled back.
    """

    def __init__(self, url: URL, lock_timeout: int = LOCK_TIMEOUT) -> None:
        """`lock_timeout`: milliseconds that a write waits for another."""
        self.lock_timeout = lock_timeout
        self._engine = open_async_engine(url, pool_size=_CONNECTIONS, lock_timeout=lock_timeout)
        # The pool has a fixed limit for waiting, and a request has a deadline.
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._reader = self._engine.execution_options(**READ_ONLY)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Open a session that only reads, and does not wait for writers. Raises SQLAlchemyError."""
        async with self._connection(), AsyncSession(self._reader) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Open a session that commits when the block ends, and rolls back if it raises.

        Raises:
            CommitUnknown: the connection was lost, or the disk failed, during the commit.
            SQLAlchemyError: any other failure of the database. Nothing was changed.
        """
        committing = False
        try:
            async with self._connection(), AsyncSession(self._engine) as session, session.begin():
                yield session
                await session.flush()
                committing = True
        except Exception as error:
            if committing and not _rolled_back(error):
                raise CommitUnknown from error
            raise

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[None]:
        """Wait for a free connection until the deadline; then shield the block. Raises SQLAlchemyError."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        try:
            async with asyncio.timeout(remaining()):
                await self._free.acquire()
        except TimeoutError:
            raise PoolTimeout("no connection was free in time") from None
        try:
            with anyio.CancelScope(shield=True):
                yield
        finally:
            self._free.release()

    async def ping(self) -> None:
        """Check that the database answers. Raises SQLAlchemyError if it does not."""
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _rolled_back(error: Exception) -> bool:
    """Tell whether an error of a commit proves that nothing was changed."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code (https://sqlite.org/rescode.html).
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT}
    state = getattr(cause, "sqlstate", None)
    # Connection failures, shutdowns and "statement completion unknown" (PostgreSQL, Appendix A).
    return state is not None and not state.startswith(("08", "57")) and state != "40003"
