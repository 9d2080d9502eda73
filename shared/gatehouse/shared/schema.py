"""Migrations by Alembic, from the installed package: `upgrade` at init, `require_current` at every start."""

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine


class SchemaMismatch(Exception):
    """The database is not at the revision that this version works with; the message names the mend."""


def _config(migrations: str, connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", migrations)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(engine: Engine, migrations: str) -> None:
    """Bring the database to the newest revision in one transaction. Does nothing when it is there.

    `migrations` is a package location such as `gatehouse.authserver.store:migrations`.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # Two processes that init at once take turns; SQLite's write lock does the same by itself.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('gatehouse.migrations'))")
        command.upgrade(_config(migrations, connection), "head")


def require_current(engine: Engine, migrations: str, init_command: str) -> None:
    """Refuse to run on a database that this version did not migrate.

    Raises:
        SchemaMismatch: the database is empty, older, or newer than this version.
    """
    script = ScriptDirectory.from_config(_config(migrations))
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == script.get_current_head():
        return
    if current is None or current in {revision.revision for revision in script.walk_revisions()}:
        raise SchemaMismatch(f"The database is not at this version's schema. Run: {init_command}")
    raise SchemaMismatch(
        "The database was migrated by a newer version. Install that version, or restore a backup made before it."
    )
