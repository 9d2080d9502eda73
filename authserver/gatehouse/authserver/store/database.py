"""Sessions of the authorization server's database."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, text
from sqlalchemy.orm import Session

from gatehouse.shared import schema
from gatehouse.shared.database import READ_ONLY, create_file, open_engine

MIGRATIONS = "gatehouse.authserver.store:migrations"
INIT_COMMAND = "authserver init"


class Database:
    """One process's connections."""

    def __init__(self, url: URL, *, pool_size: int = 5) -> None:
        self.url = url
        self.engine = open_engine(url, pool_size=pool_size)
        self._reader = self.engine.execution_options(**READ_ONLY)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session that only reads."""
        with Session(self._reader) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session that commits when the block ends, and changes nothing when it raises."""
        with Session(self.engine) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Create or upgrade the schema."""
        create_file(self.url)
        schema.upgrade(self.engine, MIGRATIONS)

    def require_current(self) -> None:
        """Refuse a schema of another version.

        Raises:
            SchemaMismatch: the message names the command that mends it.
        """
        schema.require_current(self.engine, MIGRATIONS, INIT_COMMAND)

    def ping(self) -> None:
        """Ask the database for an answer. Raises SQLAlchemyError when there is none."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
