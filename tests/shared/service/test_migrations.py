"""Migrations of both servers: to the newest revision, and no start on any other."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import JSON, URL, Connection, MetaData, inspect, select, text
from support.databases import PostgreSQL
from support.migrations import downgrade

from gatehouse.authserver.cli import main as authserver_command
from gatehouse.authserver.credentials.lifecycle import Lifetime, end, lifetime_of
from gatehouse.authserver.db.database import Database as AuthServerDatabase
from gatehouse.authserver.db.models import Base as AuthServerBase
from gatehouse.authserver.db.models import ClientKeyRow, ClientSecretRow
from gatehouse.resourceserver.cli import main as resourceserver_command
from gatehouse.resourceserver.db.database import Database as ResourceServerDatabase
from gatehouse.resourceserver.db.models import Base as ResourceServerBase
from gatehouse.resourceserver.db.models import EnvironmentRow, OrganizationRow, WorkspaceRow
from gatehouse.shared.service import migrations
from gatehouse.shared.service.database import create_file

pytestmark = pytest.mark.both_databases

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

revision, down_revision, branch_labels, depends_on = "9000", "0006", None, None


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


def with_revisions_of(server: str, folder: Path, *revisions: str) -> migrations.Schema:
    """Return a copy of a server's migrations, those of its revisions that are wanted."""
    [package] = importlib.util.find_spec(f"gatehouse.{server}.db").submodule_search_locations
    shutil.copytree(Path(package) / "migrations", folder)
    wanted = {path.name for pattern in revisions or ("*.py",) for path in (folder / "versions").glob(pattern)}
    for path in (folder / "versions").glob("*.py"):
        if path.name not in wanted:
            path.unlink()
    return migrations.Schema(str(folder), f"{server} init")


def with_later_revision(folder: Path, last: str = "") -> migrations.Schema:
    """Return the authorization server's migrations and one more."""
    migrations = with_revisions_of("authserver", folder)
    (folder / "versions" / "9000_later.py").write_text(LATER_REVISION.format(last=last))
    return migrations


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
    with pytest.raises(migrations.SchemaMismatch, match=f"Run: {name} init"):
        database.require_current()
    database.migrate()
    database.require_current()


@pytest.mark.parametrize("name", ["authserver"])
def test_the_database_of_the_other_server_is_named_for_what_it_is(
    database: Any, name: str, empty_database: URL
) -> None:
    """Both number their revisions alike."""
    database.migrate()
    other = ResourceServerDatabase(empty_database)
    for use in (other.require_current, other.migrate):
        with pytest.raises(migrations.SchemaMismatch, match=r"^This is not a database of resourceserver, but another"):
            use()
    other.close()
    database.require_current()


def test_a_newer_database_is_refused_and_init_is_not_advised(database: Any) -> None:
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


def revisions_of(server: str) -> list[str]:
    script = ScriptDirectory.from_config(migrations._config(SERVERS[server][0].schema.migrations))
    return sorted(revision.revision for revision in script.walk_revisions())


def fill(connection: Connection) -> None:
    """Give every table a row that refers to those of the others."""
    found = MetaData()
    found.reflect(connection)
    rows: dict[str, dict[str, Any]] = {}
    for table in found.sorted_tables:
        if table.name == "alembic_version":
            continue
        row = {column.name: of_type(column.type) for column in table.columns}
        for key in table.foreign_keys:
            row[key.parent.name] = rows[key.column.table.name][key.column.name]
        rows[table.name] = row
        connection.execute(table.insert(), row)


def of_type(kind: Any) -> Any:
    """Return a value for a column: the same one for all of a type, but none for a column of JSON but an empty list."""
    if isinstance(kind, JSON):
        return []
    python_type = kind.python_type
    return {str: "x", int: 1, bool: True, bytes: b"x"}[python_type]


def numbers(database: Any) -> dict[str, int]:
    """Return how many rows each table has."""
    with database.engine.begin() as connection:
        return {
            table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            for table in inspect(connection).get_table_names()
        }


@pytest.mark.parametrize(
    ("name", "revision"), [(name, revision) for name in SERVERS for revision in revisions_of(name)]
)
def test_an_upgrade_keeps_every_row(
    database: Any, name: str, revision: str, empty_database: URL, tmp_path: Path
) -> None:
    """SQLite drops a table that is rebuilt, and with it every row that refers to it, where it enforces references."""
    package = "resourceserver" if name == "resourceserver" else name
    older = [f"{number}_*.py" for number in revisions_of(name) if number <= revision]
    create_file(empty_database)
    migrations.upgrade(empty_database, with_revisions_of(package, tmp_path / "migrations", *older))
    with database.engine.begin() as connection:
        fill(connection)
    before = numbers(database)
    assert set(before.values()) == {1}
    database.migrate()
    after = numbers(database)
    assert {table: after[table] for table in before} == before
    database.require_current()


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("name", ["authserver"])
def test_a_migration_that_breaks_a_reference_is_refused_and_undone(
    database: Any, empty_database: URL, tmp_path: Path
) -> None:
    database.migrate()
    with database.engine.begin() as connection:
        fill(connection)
    later = with_later_revision(tmp_path / "migrations", 'op.execute("DELETE FROM client")')
    with pytest.raises(
        migrations.SchemaMismatch, match="In client_grant, client_key, client_secret rows refer to rows"
    ):
        migrations.upgrade(empty_database, later)
    assert set(numbers(database).values()) == {1}
    database.require_current()


def test_the_directory_of_the_first_version_is_kept(empty_database: URL, tmp_path: Path) -> None:
    first = with_revisions_of("resourceserver", tmp_path / "migrations", "0001_*.py")
    database = ResourceServerDatabase(empty_database)
    create_file(empty_database)
    migrations.upgrade(empty_database, first)
    with database.engine.begin() as connection:
        for row in (
            "workspace VALUES ('wks_1', 'acme', 1)",
            "environment VALUES ('env_1', 'wks_1', 'staging', 'staging', 1)",
            "organization VALUES ('org_1', 'env_1', 'A', 'crm-1', 1)",
        ):
            connection.exec_driver_sql(f"INSERT INTO {row}")
    with pytest.raises(migrations.SchemaMismatch, match="Run: resourceserver init"):
        database.require_current()
    database.migrate()
    database.require_current()
    with database.write() as session:
        directory = [session.scalars(select(row)).one() for row in (WorkspaceRow, EnvironmentRow, OrganizationRow)]
        assert [row.created_at for row in directory] == [1, 1, 1]
        assert directory[1].initiate_login_uri is None
        assert directory[2].external_id == "crm-1"
    database.close()


def test_credentials_that_had_no_end_before_have_none_after_and_what_ended_does_not_come_back(
    empty_database: URL, tmp_path: Path
) -> None:
    database = AuthServerDatabase(empty_database)
    create_file(empty_database)
    migrations.upgrade(empty_database, with_revisions_of("authserver", tmp_path / "migrations", "000[1-5]_*.py"))
    with database.write() as session:
        client = "client_id, client_name, token_endpoint_auth_method, claims, created_at"
        for row in (
            "pepper VALUES ('p', '', 1)",
            f"client ({client}) VALUES ('a', 'a', 'client_secret_basic', '{{}}', 1)",
            *(f"client_secret VALUES ('{name}', 'a', 'p', '', 'h', 1)" for name in ("s", "t", "u")),
            "client_key VALUES ('a', 'k', '{}', 1)",
        ):
            session.execute(text(f"INSERT INTO {row}"))
    database.migrate()
    with database.write() as session:
        secrets = session.scalars(select(ClientSecretRow).order_by(ClientSecretRow.secret_id)).all()
        for credential in (*secrets, *session.scalars(select(ClientKeyRow))):
            assert lifetime_of(credential) == Lifetime(1)
        end(secrets[0], 2)
        end(secrets[1], 2, grace_period=1)
    downgrade(empty_database, database.schema, "0005")
    with database.engine.begin() as connection:
        assert connection.scalars(text("SELECT secret_id FROM client_secret")).all() == ["u"]
    database.close()


@pytest.mark.threat("T-106")
@pytest.mark.only_on("postgresql")
def test_neither_init_nor_check_prints_an_option_of_the_database(
    name: str, empty_database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CWE-532: `sslpassword` and `passfile` are options of PostgreSQL, and a log of the start is kept by many."""
    monkeypatch.chdir(tmp_path)
    url = empty_database.update_query_dict({"sslpassword": "hunter2", "application_name": "hunter3"})
    monkeypatch.setenv(f"{name.upper()}_DATABASE_URL", url.render_as_string(hide_password=False))
    for command in ("init", "check"):
        run = CliRunner().invoke(SERVERS[name][2], [command])
        assert str(url.database) in run.output
        assert "hunter" not in run.output


def test_an_older_database_is_refused_until_it_is_migrated(empty_database: URL, tmp_path: Path) -> None:
    database = AuthServerDatabase(empty_database)
    database.migrate()
    later = with_later_revision(tmp_path / "migrations")
    with pytest.raises(migrations.SchemaMismatch, match="Run: authserver init"):
        migrations.require_current(database.engine, later)
    migrations.upgrade(empty_database, later)
    migrations.require_current(database.engine, later)
    assert "later" in tables(database)
    database.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(empty_database: URL, tmp_path: Path) -> None:
    database = AuthServerDatabase(empty_database)
    database.migrate()
    before = tables(database)
    with pytest.raises(ZeroDivisionError):
        migrations.upgrade(empty_database, with_later_revision(tmp_path / "migrations", "raise ZeroDivisionError"))
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
    """In SQL_ASCII a name comes back as bytes, and in LATIN1 one in Greek is an outage."""
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
