"""The resource server's database: asynchronous for requests, synchronous for commands and the audit writer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.shared.service.database import READ_ONLY, open_async_engine
from gatehouse.shared.service.migrations import Schema
from gatehouse.shared.service.sessions import SessionDatabase


class Database(SessionDatabase):
    """The directory, and the audit log."""

    schema = Schema("gatehouse.resourceserver.db:migrations", "resourceserver init", landmark="workspace")


class AsyncDatabase:
    """The same database on an event loop: one process's connections for requests.

    A session is not interrupted: whoever is cancelled in one ends it first. SQLAlchemy would abandon the connection
    in the middle of a statement, and with it SQLite's write lock, until Python's garbage collector comes by.
    """

    def __init__(self, url: URL) -> None:
        self._engine = open_async_engine(url)
        self._reader = self._engine.execution_options(**READ_ONLY)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Open a session that only reads, and waits for no writer."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            async with AsyncSession(self._reader) as session:
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Open a session that commits when the block ends, and changes nothing when it raises."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            async with AsyncSession(self._engine) as session, session.begin():
                yield session

    async def ping(self) -> None:
        """Ask the database for an answer. Raises SQLAlchemyError when there is none."""
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()
