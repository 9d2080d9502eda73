"""The resource server's database: in threads for the requests of an event loop, directly for everything else."""

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import URL
from sqlalchemy.orm import Session

from gatehouse.resourceserver.db.threads import Threads, acquire
from gatehouse.shared.service import migrations
from gatehouse.shared.service.database import LOCK_TIMEOUT
from gatehouse.shared.service.database import Database as ServiceDatabase
from gatehouse.shared.service.migrations import MigratedDatabase, Schema, SchemaMismatch

ResultT = TypeVar("ResultT")


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


CONNECTIONS: Final = 5
"""Connections of one process for requests, and threads that use them."""


class CommitUnknown(Exception):
    """The database did not report whether it committed a transaction."""

    def __init__(self) -> None:
        super().__init__("the database did not report whether the transaction was committed")


class RequestDatabase:
    """The same database for the requests of an event loop: a function runs in a thread, in one transaction.

    No other thread uses the session, and the transaction has ended when the loop gets the result.
    """

    def __init__(self, url: URL, lock_timeout: int = LOCK_TIMEOUT) -> None:
        """`lock_timeout`: milliseconds that a write waits for another."""
        self.lock_timeout = lock_timeout
        self._database = ServiceDatabase(url, pool_size=CONNECTIONS, lock_timeout=lock_timeout)
        self._threads = Threads(CONNECTIONS)
        # SQLite has one writer. The others wait on the loop, where they occupy no thread that a reader could use.
        writers = 1 if url.get_backend_name() == "sqlite" else CONNECTIONS
        self._writers = asyncio.Semaphore(writers)

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Run a function in a thread, without a transaction.

        Raises:
            PoolTimeout: no thread was free before the deadline.
            BaseException: whatever the function raises.
        """
        return await self._threads.run(function)

    async def run_read(self, function: Callable[[Session], ResultT]) -> ResultT:
        """Run a function in a thread with a session that only reads, and does not wait for writers.

        Raises:
            SQLAlchemyError: the database failed, or no thread was free before the deadline.
            BaseException: whatever the function raises.
        """
        return await self._threads.run(partial(self.read, function))

    async def run_write(self, function: Callable[[Session], ResultT]) -> ResultT:
        """Run a function in a thread with a session that commits when it returns, and rolls back if it raises.

        Raises:
            CommitUnknown: the connection was lost, or the disk failed, during the commit.
            SQLAlchemyError: any other failure of the database, or no thread was free. Nothing was changed.
            BaseException: whatever the function raises. Nothing was changed.
        """
        await acquire(self._writers, self.lock_timeout / 1000)
        try:
            return await self._threads.run(partial(self._write, function))
        finally:
            self._writers.release()

    def read(self, function: Callable[[Session], ResultT]) -> ResultT:
        """Do what `run_read` does, in the current thread."""
        with self._database.read() as session:
            return function(session)

    def _write(self, function: Callable[[Session], ResultT]) -> ResultT:
        committing = False
        try:
            with self._database.write() as session:
                result = function(session)
                session.flush()
                committing = True
        except Exception as error:
            if committing and not _rolled_back(error):
                raise CommitUnknown from error
            raise
        return result

    async def ping(self) -> None:
        """Check that the database answers. Raises SQLAlchemyError if it does not."""
        await self._threads.run(self._database.ping)

    def close(self) -> None:
        """Close every connection."""
        self._threads.close()
        self._database.close()


def _rolled_back(error: Exception) -> bool:
    """Tell whether an error of a commit proves that nothing was changed."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code (https://sqlite.org/rescode.html).
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT}
    state = getattr(cause, "sqlstate", None)
    # Connection failures, shutdowns and "statement completion unknown" (PostgreSQL, Appendix A).
    return state is not None and not state.startswith(("08", "57")) and state != "40003"
