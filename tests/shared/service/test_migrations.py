"""Migrations of both servers and of the directory: upgrades to the newest revision, and no start on any other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import JSON, URL, Connection, MetaData, inspect
from support.databases import PostgreSQL
from support.migrations import REBUILD_TABLES, with_later_revision

from gatehouse.authserver.cli import main as authserver_command
from gatehouse.authserver.db.database import Database as AuthServerDatabase
from gatehouse.authserver.db.models import Base as AuthServerBase
from gatehouse.directory.migrations import SCHEMA
from gatehouse.directory.models import Base as DirectoryBase
from gatehouse.resourceserver.cli import main as resourceserver_command
from gatehouse.resourceserver.db.database import Database as ResourceServerDatabase
from gatehouse.resourceserver.db.models import Base as ResourceServerBase
from gatehouse.shared.service import migrations
from gatehouse.shared.service.migrations import MigratedDatabase

pytestmark = pytest.mark.both_databases


class DirectoryDatabase(MigratedDatabase):
    """The directory's tables alone."""

    schema = SCHEMA


SERVERS = {
    "authserver": (AuthServerDatabase, AuthServerBase, authserver_command),
    "resourceserver": (ResourceServerDatabase, ResourceServerBase, resourceserver_command),
    "directory": (DirectoryDatabase, DirectoryBase, resourceserver_command),
}
PROGRAMS = {"authserver": "authserver", "resourceserver": "resourceserver", "directory": "resourceserver"}

SHAPE_QUERIES = {
    "sqlite": ["SELECT name, sql FROM sqlite_master", "SELECT version_num, 1 FROM {version_table}"],
    "postgresql": [
        "SELECT oid, attname, a.* FROM pg_attribute a, pg_class WHERE attrelid = oid AND relnamespace = 2200",
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
        "SELECT version_num, xmin::text FROM {version_table}",
    ],
}


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
        connection.exec_driver_sql(f"UPDATE {database.schema.version_table} SET version_num = '{revision}'")


def tables(database: Any) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def shape(database: Any) -> list[Any]:
    """Return the database's own description of its tables, indexes and constraints, and the revision."""
    with database.engine.begin() as connection:
        found = []
        for query in SHAPE_QUERIES[connection.dialect.name]:
            text = query.format(version_table=database.schema.version_table)
            found.append(connection.exec_driver_sql(f"{text} ORDER BY 1, 2").all())
    assert all(found)
    return found


def test_the_migrated_schema_equals_the_models(database: Any, name: str) -> None:
    database.migrate()
    with database.engine.connect() as connection:
        version_table = database.schema.version_table
        options = {"compare_type": True, "compare_server_default": True, "version_table": version_table}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, SERVERS[name][1].metadata) == []
    assert tables(database) == {*SERVERS[name][1].metadata.tables, version_table}


def test_migrating_again_changes_nothing(database: Any) -> None:
    database.migrate()
    before = shape(database)
    database.migrate()
    assert shape(database) == before
    database.require_current()


def test_an_empty_database_is_refused_with_the_command_to_run(database: Any, name: str) -> None:
    with pytest.raises(migrations.SchemaMismatch, match=f"Run: {PROGRAMS[name]} init"):
        database.require_current()
    database.migrate()
    database.require_current()


@pytest.mark.parametrize("name", ["authserver"])
def test_the_other_servers_database_is_refused_as_such(database: Any, name: str, empty_database: URL) -> None:
    """Both servers number their revisions from 0001."""
    database.migrate()
    other = ResourceServerDatabase(empty_database)
    for use in (other.require_current, other.migrate):
        with pytest.raises(migrations.SchemaMismatch, match=r"^This is another program.s database"):
            use()
    other.close()
    database.require_current()


def test_a_newer_database_is_refused_without_advice_to_run_init(database: Any) -> None:
    database.migrate()
    set_revision(database, "9999")
    with pytest.raises(migrations.SchemaMismatch, match=r"newer version\. Install that version") as refusal:
        database.require_current()
    assert "init" not in str(refusal.value)


def test_a_newer_database_is_not_migrated(database: Any) -> None:
    database.migrate()
    set_revision(database, "9999")
    with pytest.raises(migrations.SchemaMismatch, match="newer version"):
        database.migrate()


def test_init_refuses_a_newer_database(
    database: Any, name: str, empty_database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"{PROGRAMS[name].upper()}_DATABASE_URL", empty_database.render_as_string(hide_password=False))
    run = CliRunner().invoke(SERVERS[name][2], ["init"])
    assert run.exit_code == 0, run.output
    set_revision(database, "9999")
    run = CliRunner().invoke(SERVERS[name][2], ["init"])
    assert run.exit_code == 1
    assert "newer version" in run.output


def fill(connection: Connection) -> None:
    """Insert one row into every table, with references to the rows of the others."""
    found = MetaData()
    found.reflect(connection)
    rows: dict[str, dict[str, Any]] = {}
    for table in found.sorted_tables:
        if table.name in {"alembic_version", "directory_version"}:
            continue
        row = {column.name: of_type(column.type) for column in table.columns}
        for key in table.foreign_keys:
            row[key.parent.name] = rows[key.column.table.name][key.column.name]
        rows[table.name] = row
        connection.execute(table.insert(), row)


def of_type(kind: Any) -> Any:
    """Return a value for a column: the same one for every column of a type."""
    if isinstance(kind, JSON):
        return []
    python_type = kind.python_type
    return {str: "x", int: 1, bool: True, bytes: b"x"}[python_type]


def row_counts(database: Any) -> dict[str, int]:
    """Return how many rows each table has."""
    with database.engine.begin() as connection:
        return {
            table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            for table in inspect(connection).get_table_names()
        }


def test_an_upgrade_keeps_every_row(database: Any, name: str, empty_database: URL, tmp_path: Path) -> None:
    """SQLite rebuilds a table by dropping it: with references enforced, rows that refer to it would go too."""
    database.migrate()
    with database.engine.begin() as connection:
        fill(connection)
    before = row_counts(database)
    assert set(before.values()) == {1}
    later = with_later_revision(database.schema, tmp_path / "migrations", REBUILD_TABLES)
    migrations.upgrade(empty_database, later)
    assert row_counts(database) == {**before, "later": 0}
    with database.engine.begin() as connection:
        for table in before.keys() - {database.schema.version_table}:
            assert connection.exec_driver_sql(f"SELECT added FROM {table}").scalars().all() == [7]
    migrations.require_current(database.engine, later)


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("name", ["authserver"])
def test_a_migration_that_breaks_a_reference_is_rolled_back(database: Any, empty_database: URL, tmp_path: Path) -> None:
    database.migrate()
    with database.engine.begin() as connection:
        fill(connection)
    later = with_later_revision(database.schema, tmp_path / "migrations", '    op.execute("DELETE FROM client")')
    with pytest.raises(
        migrations.SchemaMismatch, match="In client_grant, client_key, client_secret, trust_rule rows refer to rows"
    ):
        migrations.upgrade(empty_database, later)
    assert set(row_counts(database).values()) == {1}
    database.require_current()


@pytest.mark.only_on("postgresql")
def test_init_and_check_print_no_option_of_the_database_url(
    name: str, empty_database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CWE-532: `sslpassword` and `passfile` are options of PostgreSQL, and startup logs are often kept."""
    monkeypatch.chdir(tmp_path)
    url = empty_database.update_query_dict({"sslpassword": "hunter2", "application_name": "hunter3"})
    monkeypatch.setenv(f"{PROGRAMS[name].upper()}_DATABASE_URL", url.render_as_string(hide_password=False))
    for command in ("init", "check"):
        run = CliRunner().invoke(SERVERS[name][2], [command])
        assert str(url.database) in run.output
        assert "hunter" not in run.output


def test_an_older_database_is_refused_until_it_is_migrated(empty_database: URL, tmp_path: Path) -> None:
    database = AuthServerDatabase(empty_database)
    database.migrate()
    later = with_later_revision(database.schema, tmp_path / "migrations")
    with pytest.raises(migrations.SchemaMismatch, match="Run: authserver init"):
        migrations.require_current(database.engine, later)
    migrations.upgrade(empty_database, later)
    migrations.require_current(database.engine, later)
    assert "later" in tables(database)
    database.close()


def test_a_failed_migration_changes_nothing(empty_database: URL, tmp_path: Path) -> None:
    database = AuthServerDatabase(empty_database)
    database.migrate()
    before = tables(database)
    later = with_later_revision(database.schema, tmp_path / "migrations", "    raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        migrations.upgrade(empty_database, later)
    assert tables(database) == before
    database.require_current()
    database.close()


@pytest.mark.only_on("sqlite")
def test_a_database_file_that_others_can_change_is_refused(database: Any) -> None:
    """A user who can write to the database can grant scopes to any client."""
    database.migrate()
    database.require_current()
    path = Path(database.url.database)
    path.chmod(0o660)
    with pytest.raises(migrations.SchemaMismatch, match="chmod go-w"):
        database.require_current()
    path.chmod(0o644)
    database.require_current()
    path.parent.chmod(0o777)
    with pytest.raises(migrations.SchemaMismatch, match="chmod go-w"):
        database.require_current()


@pytest.mark.threat("T-131")
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused(
    postgresql: PostgreSQL, name: str, database: Any, encoding: str
) -> None:
    """SQL_ASCII returns a name as bytes, and LATIN1 fails on a Greek one."""
    database.migrate()
    database.require_current()
    url = postgresql.create_database_in(encoding)
    other = SERVERS[name][0](url)
    for use in (other.migrate, other.require_current):
        with pytest.raises(migrations.SchemaMismatch, match=f"{encoding}.*createdb --encoding=UTF8"):
            use()
    assert tables(other) == set()
    other.close()
    postgresql.drop_database(url)
