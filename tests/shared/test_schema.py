"""Migrations of both servers: to the newest revision, and no start on any other."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import URL, inspect

from gatehouse.authserver.cli import main as authserver_command
from gatehouse.authserver.store.database import Database as AuthServerDatabase
from gatehouse.authserver.store.models import Base as AuthServerBase
from gatehouse.resource.cli import main as resourceserver_command
from gatehouse.resource.store.database import Database as ResourceServerDatabase
from gatehouse.resource.store.models import Base as ResourceServerBase
from gatehouse.shared import schema

SERVERS = {
    "authserver": (AuthServerDatabase, AuthServerBase, authserver_command),
    "resourceserver": (ResourceServerDatabase, ResourceServerBase, resourceserver_command),
}

SHAPE_QUERIES = {
    "sqlite": ["SELECT name, sql FROM sqlite_master", "SELECT version_num, 1 FROM alembic_version"],
    "postgresql": [
        "SELECT oid, attname, a.* FROM pg_attribute a, pg_class WHERE attrelid = oid AND relnamespace = 2200",
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
        "SELECT version_num, xmin::text FROM alembic_version",
    ],
}

LATER_REVISION = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "9000", "0004", None, None


def upgrade():
    op.execute("CREATE TABLE later (id INTEGER)")
    {last}
"""


@pytest.fixture(params=SERVERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database(name: str, empty_database: URL) -> Iterator[Any]:
    database = SERVERS[name][0](empty_database)
    yield database
    database.close()


def set_revision(database: Any, revision: str) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")


def tables(database: Any) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def shape(database: Any) -> list[Any]:
    """Return the database's own description of its tables, indexes and constraints, and the revision."""
    with database.engine.begin() as connection:
        found = [
            connection.exec_driver_sql(f"{query} ORDER BY 1, 2").all()
            for query in SHAPE_QUERIES[connection.dialect.name]
        ]
    assert all(found)
    return found


def with_later_revision(folder: Path, last: str = "") -> schema.Schema:
    """Return the authorization server's migrations and one more."""
    [package] = importlib.util.find_spec("gatehouse.authserver.store").submodule_search_locations
    shutil.copytree(Path(package) / "migrations", folder)
    (folder / "versions" / "9000_later.py").write_text(LATER_REVISION.format(last=last))
    return schema.Schema(str(folder), "authserver init")


def test_a_fresh_migration_equals_the_models(database: Any, name: str) -> None:
    database.migrate()
    with database.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, SERVERS[name][1].metadata) == []
    assert tables(database) == {*SERVERS[name][1].metadata.tables, "alembic_version"}


def test_migrating_again_changes_nothing(database: Any) -> None:
    database.migrate()
    before = shape(database)
    database.migrate()
    assert shape(database) == before
    database.require_current()


def test_an_empty_database_is_refused_with_the_command_that_mends_it(database: Any, name: str) -> None:
    with pytest.raises(schema.SchemaMismatch, match=f"Run: {name} init"):
        database.require_current()
    database.migrate()
    database.require_current()


def test_a_newer_database_is_refused_and_init_is_not_advised(database: Any) -> None:
    database.migrate()
    set_revision(database, "9999")
    with pytest.raises(schema.SchemaMismatch, match=r"newer version\. Install that version") as refusal:
        database.require_current()
    assert "init" not in str(refusal.value)


def test_a_newer_database_is_not_migrated(database: Any) -> None:
    database.migrate()
    set_revision(database, "9999")
    with pytest.raises(schema.SchemaMismatch, match="newer version"):
        database.migrate()


def test_init_on_a_newer_database_is_a_refusal(
    database: Any, name: str, empty_database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"{name.upper()}_DATABASE_URL", empty_database.render_as_string(hide_password=False))
    run = CliRunner().invoke(SERVERS[name][2], ["init"])
    assert run.exit_code == 0, run.output
    set_revision(database, "9999")
    run = CliRunner().invoke(SERVERS[name][2], ["init"])
    assert run.exit_code == 1
    assert "newer version" in run.output


def test_an_older_database_is_refused_until_it_is_migrated(empty_database: URL, tmp_path: Path) -> None:
    database = AuthServerDatabase(empty_database)
    database.migrate()
    later = with_later_revision(tmp_path / "migrations")
    with pytest.raises(schema.SchemaMismatch, match="Run: authserver init"):
        schema.require_current(database.engine, later)
    schema.upgrade(database.engine, later)
    schema.require_current(database.engine, later)
    assert "later" in tables(database)
    database.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(empty_database: URL, tmp_path: Path) -> None:
    database = AuthServerDatabase(empty_database)
    database.migrate()
    before = tables(database)
    with pytest.raises(ZeroDivisionError):
        schema.upgrade(database.engine, with_later_revision(tmp_path / "migrations", "raise ZeroDivisionError"))
    assert tables(database) == before
    database.require_current()
    database.close()


@pytest.mark.only_on("sqlite")
def test_a_database_file_that_others_can_change_is_refused(database: Any) -> None:
    """Whoever writes the database grants himself scopes."""
    database.migrate()
    database.require_current()
    path = Path(database.url.database)
    path.chmod(0o660)
    with pytest.raises(schema.SchemaMismatch, match="chmod go-w"):
        database.require_current()
    path.chmod(0o644)
    database.require_current()
    path.parent.chmod(0o777)
    with pytest.raises(schema.SchemaMismatch, match="chmod go-w"):
        database.require_current()
