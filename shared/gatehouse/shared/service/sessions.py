"""A server's database, as used by its commands, its endpoints and its audit writer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from sqlalchemy import URL, text
from sqlalchemy.orm import Session

from gatehouse.shared.service import migrations
from gatehouse.shared.service.database import READ_ONLY, create_file, open_engine, others_may_write, sqlite_path
from gatehouse.shared.service.migrations import Schema, SchemaMismatch


class SessionDatabase:
    """One process's connections. A subclass of each server names its schema. `patient` lifts the limit on waiting."""

    schema: Schema

    def __init__(self, url: URL, *, pool_size: int = 1, patient: bool = False) -> None:
        self.url = url
        self.engine = open_engine(url, pool_size=pool_size, patient=patient)
        self._reader = self.engine.execution_options(**READ_ONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session that only reads and never waits for a writer."""
        with Session(self._reader) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session that commits when the block ends, and changes nothing when it raises."""
        with Session(self.engine) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Create or upgrade the schema.

        Raises:
            SchemaMismatch: a newer version created it, its encoding is not UTF8, or its rows do not fit.
        """
        create_file(self.url)
        migrations.upgrade(self.url, self.schema)

    def require_current(self) -> None:
        """Refuse a database without this version's schema.

        Raises:
            SchemaMismatch: the message names the command that fixes it.
        """
        path = sqlite_path(self.url)
        if path is not None and not path.exists():
            raise SchemaMismatch(
                f"There is no database at {path}. Run: {self.schema.init_command}; "
                "or change to the folder where it was initialized."
            )
        if path is not None and others_may_write(path):
            raise SchemaMismatch(f"Others can change the database. Run: chmod go-w {path} {path.parent}")
        migrations.require_current(self.engine, self.schema)

    def ping(self) -> None:
        """Query the database. Raises SQLAlchemyError if it does not answer."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
