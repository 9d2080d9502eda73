"""The resource server's database: asynchronous for requests, synchronous for commands and the audit writer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.shared.service import migrations
from gatehouse.shared.service.database import LOCK_TIMEOUT, READ_ONLY, open_async_engine
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


class AsyncDatabase:
    """The same database on an event loop: the connections of one process for requests.

    A session is not interrupted: a task that is cancelled within one finishes it first. Otherwise SQLAlchemy would
    abandon the connection in the middle of a statement, and SQLite's write lock would stay until garbage collection.
    """

    def __init__(self, url: URL, lock_timeout: int = LOCK_TIMEOUT) -> None:
        """`lock_timeout`: milliseconds that a write waits for another."""
        self.lock_timeout = lock_timeout
        self._engine = open_async_engine(url, lock_timeout=lock_timeout)
        self._reader = self._engine.execution_options(**READ_ONLY)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Open a session that only reads, and does not wait for writers."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            async with AsyncSession(self._reader) as session:
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Open a session that commits when the block ends, and rolls back if it raises."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            async with AsyncSession(self._engine) as session, session.begin():
                yield session

    async def ping(self) -> None:
        """Check that the database answers. Raises SQLAlchemyError if it does not."""
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()
