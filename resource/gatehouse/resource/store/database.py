"""Sessions of the resource server's database: asynchronous for requests, synchronous for commands and audit."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from gatehouse.shared import schema
from gatehouse.shared.database import READ_ONLY, create_file, open_async_engine, open_engine

MIGRATIONS = "gatehouse.resource.store:migrations"
INIT_COMMAND = "resourceserver init"


class Database:
    """One process's connections for requests."""

    def __init__(self, url: URL) -> None:
        self._engine = open_async_engine(url)
        self._reader = self._engine.execution_options(**READ_ONLY)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Open a session that only reads."""
        async with AsyncSession(self._reader) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Open a session that commits when the block ends, and changes nothing when it raises."""
        async with AsyncSession(self._engine) as session, session.begin():
            yield session

    async def ping(self) -> None:
        """Ask the database for an answer. Raises SQLAlchemyError when there is none."""
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


class AdminDatabase:
    """A command's, or the audit writer's, connections."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.engine = open_engine(url, pool_size=1)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open a session that commits when the block ends, and changes nothing when it raises."""
        with Session(self.engine) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Create or upgrade the schema."""
        create_file(self.url)
        schema.upgrade(self.engine, MIGRATIONS)

    def require_current(self) -> None:
        """Refuse a schema of another version. Raises SchemaMismatch."""
        schema.require_current(self.engine, MIGRATIONS, INIT_COMMAND)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
