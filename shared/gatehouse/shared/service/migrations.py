"""Migrations by Alembic, from the installed package: `upgrade` at init, `require_current` at every start."""

from dataclasses import dataclass

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, inspect

from gatehouse.shared.service.database import READ_ONLY, open_engine

_TAKE_TURNS = {
    "postgresql": "SELECT pg_advisory_xact_lock(hashtext('gatehouse.migrations'))",
    "sqlite": "SELECT 1",  # the transaction has the write lock since it began
}
"""What keeps two processes that init at once from migrating together."""


class SchemaMismatch(Exception):
    """The database is not at the revision that this version works with; the message says how to fix it."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Where a server's migrations are, and the command that runs them."""

    migrations: str
    """A package location, such as `gatehouse.authserver.db:migrations`."""
    init_command: str
    landmark: str = ""
    """A table that every revision has, and no other server's database."""
    version_table: str = "alembic_version"
    """The table that holds the revision. Two schemas in one database have one each."""


def alembic_config(schema: Schema, connection: Connection | None = None) -> Config:
    """Return the configuration of Alembic's commands for a schema. Its `env.py` reads the attributes."""
    config = Config()
    config.set_main_option("script_location", schema.migrations)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["version_table"] = schema.version_table
    return config


def upgrade(url: URL, schema: Schema) -> None:
    """Bring the database to the newest revision in one transaction. Does nothing when it is there.

    Raises:
        SchemaMismatch: the database was migrated by a newer version, or cannot hold every text.
    """
    engine = open_engine(url, pool_size=1, patient=True, references=False)
    try:
        with engine.begin() as connection:
            _require_utf8(connection)
            _refuse_newer(connection, schema)
            connection.exec_driver_sql(_TAKE_TURNS[connection.dialect.name])
            command.upgrade(alembic_config(schema, connection), "head")
            _require_references(connection)
    finally:
        engine.dispose()


def _require_references(connection: Connection) -> None:
    """Refuse what a migration made of the rows, if one refers to another that is not there."""
    if connection.dialect.name != "sqlite":
        return
    if broken := {row[0] for row in connection.exec_driver_sql("PRAGMA foreign_key_check")}:
        raise SchemaMismatch(
            f"In {', '.join(sorted(broken))} rows refer to rows that are not there, and nothing was migrated. "
            "Restore a backup, or report this."
        )


def require_current(engine: Engine, schema: Schema) -> None:
    """Refuse to run on a database that this version did not migrate.

    Raises:
        SchemaMismatch: the database is empty, older, or newer than this version, or cannot hold every text.
    """
    with engine.execution_options(**READ_ONLY).connect() as connection:
        _require_utf8(connection)
        current = _refuse_newer(connection, schema)
    if current != newest_revision(schema):
        raise SchemaMismatch(f"The database is not at this version's schema. Run: {schema.init_command}")


def newest_revision(schema: Schema) -> str | None:
    """Return the revision that this version works with."""
    return ScriptDirectory.from_config(alembic_config(schema)).get_current_head()


def known_revisions(schema: Schema) -> frozenset[str]:
    """Return every revision that this version can upgrade from, and its own."""
    script = ScriptDirectory.from_config(alembic_config(schema))
    return frozenset(revision.revision for revision in script.walk_revisions())


def _require_utf8(connection: Connection) -> None:
    """Refuse an encoding in which some texts cannot be stored, or come back as bytes. SQLite's is always Unicode."""
    if connection.dialect.name != "postgresql":
        return
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise SchemaMismatch(
            f"The encoding of the database is {encoding}, in which not every text can be stored. "
            "Make another one: createdb --encoding=UTF8 --template=template0 NAME"
        )


def _refuse_newer(connection: Connection, schema: Schema) -> str | None:
    """Return the database's revision, None for an empty one. Raises SchemaMismatch when this version knows it not."""
    context = MigrationContext.configure(connection, opts={"version_table": schema.version_table})
    current = context.get_current_revision()
    if current is not None and schema.landmark and not inspect(connection).has_table(schema.landmark):
        # Both servers number their revisions from 0001.
        server = schema.init_command.partition(" ")[0]
        raise SchemaMismatch(
            f"This is not a database of {server}, but another program's. Remediation {server.upper()}_DATABASE_URL."
        )
    if current is not None and current not in known_revisions(schema):
        raise SchemaMismatch(
            "The database was migrated by a newer version. Install that version, or restore a backup made before it."
        )
    return current
