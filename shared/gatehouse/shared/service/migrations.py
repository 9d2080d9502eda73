"""A database whose schema Alembic migrates: `migrate` at init, `require_current` at every start.

The migrations are part of the installed package.

Alembic takes long to import, so only an upgrade does. Every other command reads the database's revision from the
version table, and this version's revisions from the names of the files, `REVISION_what_it_does.py`.

A version also works with the next revision, so that nodes can be upgraded one after the other: a revision expands the
schema, and only a later one contracts it (docs/decisions/0024-rolling-upgrades.md).
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, Connection, Engine, inspect

from gatehouse.shared.service.database import (
    READ_ONLY,
    Database,
    create_file,
    open_engine,
    others_may_write,
    sqlite_path,
)
from gatehouse.shared.service.pooler import require_usable_pooler

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)

_REVISION_FILE = re.compile(r"([0-9]{4})_[a-z0-9_]+\.py", re.ASCII)

_SERIALIZE = {
    "postgresql": "SELECT pg_advisory_xact_lock(hashtext('gatehouse.migrations'))",
    "sqlite": "SELECT 1",  # the transaction has held the write lock since it began
}
"""Makes concurrent migrations wait for each other."""


class SchemaMismatch(Exception):
    """The database is not at a revision that this version works with; the message says how to fix it."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Where the migrations of a set of tables are, and the command that runs them."""

    migrations: str
    """A package location, such as `gatehouse.authserver.db:migrations`, or a folder."""
    init_command: str
    landmark: str = ""
    """A table that every revision has, and that no other server's database has."""
    version_table: str = "alembic_version"
    """The table that holds the database's revision. Two schemas in one database have one each."""


class MigratedDatabase(Database):
    """A server's database. A subclass of each server names its schema."""

    schema: Schema

    is_ahead = False
    """Whether the next version has migrated the database, once it was found usable."""

    def migrate(self) -> None:
        """Create or upgrade the schema.

        Raises:
            SchemaMismatch: a version after the next one created it, its encoding is not UTF8, or its rows do not fit.
            InvalidSettings: a connection pooler in front of it would lose something.
        """
        create_file(self.url)
        self._require_usable_pooler()
        upgrade(self.url, self.schema)

    def require_current(self) -> None:
        """Refuse a database with neither this version's schema nor that of the next one.

        Raises:
            SchemaMismatch: the message names the command that fixes it.
            InvalidSettings: a connection pooler in front of it would lose something.
        """
        path = sqlite_path(self.url)
        if path is not None and not path.exists():
            raise SchemaMismatch(
                f"There is no database at {path}. Run: {self.schema.init_command}; "
                "or change to the folder where it was initialized."
            )
        if path is not None and others_may_write(path):
            raise SchemaMismatch(f"Others can change the database. Run: chmod go-w {path} {path.parent}")
        self._require_usable_pooler()
        self._require_usable(self.schema)

    def _require_usable(self, schema: Schema) -> None:
        if require_current(self.engine, schema) and not self.is_ahead:
            self.is_ahead = True
            log.warning("the database has the schema of the next version: upgrade this node as well")

    def _require_usable_pooler(self) -> None:
        server = self.schema.init_command.partition(" ")[0]
        require_usable_pooler(self.engine, self.url, f"{server.upper()}_DATABASE_URL")


def alembic_config(schema: Schema, connection: Connection | None = None) -> "Config":
    """Return the configuration of Alembic's commands for a schema. Its `env.py` reads the attributes."""
    from alembic.config import Config  # noqa: PLC0415 - see the module's docstring

    config = Config()
    config.set_main_option("script_location", schema.migrations)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["version_table"] = schema.version_table
    return config


def upgrade(url: URL, schema: Schema) -> None:
    """Migrate the database to the newest revision in one transaction. Does nothing if it is there, or at the next one.

    Raises:
        SchemaMismatch: a version after the next one migrated the database, or it cannot hold every text.
    """
    from alembic import command  # noqa: PLC0415 - see the module's docstring

    engine = open_engine(url, pool_size=1, patient=True, references=False)
    try:
        with engine.begin() as connection:
            _require_utf8(connection)
            connection.exec_driver_sql(_SERIALIZE[connection.dialect.name])
            if _is_next(_refuse_newer(connection, schema), schema):
                return
            command.upgrade(alembic_config(schema, connection), "head")
            _require_references(connection)
    finally:
        engine.dispose()


def _require_references(connection: Connection) -> None:
    """Refuse the result of a migration in which a row refers to a row that does not exist."""
    if connection.dialect.name != "sqlite":
        return
    if broken := {row[0] for row in connection.exec_driver_sql("PRAGMA foreign_key_check")}:
        raise SchemaMismatch(
            f"In {', '.join(sorted(broken))} rows refer to rows that do not exist, and nothing was migrated. "
            "Restore a backup, or report this."
        )


def require_current(engine: Engine, schema: Schema) -> bool:
    """Refuse to run on a database that neither this version nor the next one migrated.

    Returns whether the next one did.

    Raises:
        SchemaMismatch: the database is empty, older, or more than one revision newer, or cannot hold every text.
    """
    with engine.execution_options(**READ_ONLY).connect() as connection:
        _require_utf8(connection)
        current = _refuse_newer(connection, schema)
    if _is_next(current, schema):
        return True
    if current != newest_revision(schema):
        raise SchemaMismatch(f"The database is not at this version's schema. Run: {schema.init_command}")
    return False


def newest_revision(schema: Schema) -> str | None:
    """Return the revision that this version works with."""
    return max(known_revisions(schema), default=None)


def known_revisions(schema: Schema) -> frozenset[str]:
    """Return every revision that this version can upgrade from, and its own."""
    return frozenset(_revisions(schema.migrations))


def _is_next(revision: str | None, schema: Schema) -> bool:
    """Tell whether a revision is the one that the next version adds."""
    newest = newest_revision(schema)
    return revision is not None and newest is not None and revision == f"{int(newest) + 1:04}"


def _revisions(migrations: str) -> Iterator[str]:
    package, colon, folder = migrations.partition(":")
    location: Traversable = files(package) / folder if colon else Path(migrations)
    for file in (location / "versions").iterdir():
        if (name := _REVISION_FILE.fullmatch(file.name)) is not None:
            yield name[1]


def _require_utf8(connection: Connection) -> None:
    """Refuse an encoding that cannot store every text, or that returns bytes. SQLite's is always Unicode."""
    if connection.dialect.name != "postgresql":
        return
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise SchemaMismatch(
            f"The encoding of the database is {encoding}, which cannot store every text. "
            "Create another database: createdb --encoding=UTF8 --template=template0 NAME"
        )


def _refuse_newer(connection: Connection, schema: Schema) -> str | None:
    """Return the database's revision, None for an empty one.

    Raises SchemaMismatch if it is neither one of this version nor the next one.
    """
    current: str | None = None
    if inspect(connection).has_table(schema.version_table):
        current = connection.exec_driver_sql(f"SELECT version_num FROM {schema.version_table}").scalar()  # noqa: S608
    if current is not None and schema.landmark and not inspect(connection).has_table(schema.landmark):
        # Both servers number their revisions from 0001.
        server = schema.init_command.partition(" ")[0]
        raise SchemaMismatch(
            f"This is another program's database, not one of {server}. Correct {server.upper()}_DATABASE_URL."
        )
    if current is not None and current not in known_revisions(schema) and not _is_next(current, schema):
        raise SchemaMismatch(
            "The database was migrated by a newer version. Install that version, or restore a backup made before it."
        )
    return current
