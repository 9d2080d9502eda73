"""Nodes of two versions use one database: migrations expand the schema first, and contract it a version later."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import (
    URL,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)
from support.migrations import with_next_revision
from support.schema_changes import compare, refused_changes

from gatehouse.authserver.cli import main
from gatehouse.authserver.db.database import Database
from gatehouse.directory.migrations import SCHEMA as DIRECTORY
from gatehouse.resourceserver.db.database import Database as ResourceServerDatabase
from gatehouse.shared.service import migrations
from gatehouse.shared.service.migrations import Schema, SchemaMismatch

SCHEMAS = [Database.schema, ResourceServerDatabase.schema, DIRECTORY]

EXPAND = """
    op.create_table("added", sa.Column("id", sa.Integer(), primary_key=True))
    op.create_index("added_index", "client", ["client_name"])
    with op.batch_alter_table("client") as batch:
        batch.add_column(sa.Column("added", sa.Integer(), nullable=True))
        batch.add_column(sa.Column("counted", sa.Integer(), nullable=False, server_default="7"))
        batch.alter_column("client_name", type_=sa.String(200))
"""
CONTRACT = """
    op.drop_table("client_grant")
    with op.batch_alter_table("client") as batch:
        batch.drop_column("token_ttl")
"""
BREAK = """
    op.create_index("unique_name", "client", ["client_name"], unique=True)
    with op.batch_alter_table("client") as batch:
        batch.alter_column("token_epoch", new_column_name="epoch")
        batch.alter_column("strict", server_default=None)
        batch.alter_column("token_ttl", nullable=False)
"""


@pytest.fixture
def database(empty_database: URL) -> Iterator[Database]:
    with Database(empty_database) as database:
        database.migrate()
        yield database


def named(table: str, /, *more: Any, **columns: Any) -> MetaData:
    """Return a schema with one table, some of whose columns are changed, or missing if None."""
    usual = {
        "id": Column("id", Integer, primary_key=True),
        "name": Column("name", String(64), nullable=False),
        "ttl": Column("ttl", Integer),
        "strict": Column("strict", Boolean, nullable=False, server_default="0"),
    }
    metadata = MetaData()
    Table(table, metadata, *(column for column in {**usual, **columns}.values() if column is not None), *more)
    return metadata


@pytest.mark.parametrize(
    ("change", "after"),
    [
        ("drops client", lambda: named("customer")),
        ("drops client.ttl", lambda: named("client", ttl=None)),
        ("requires client.added", lambda: named("client", added=Column("added", Integer, nullable=False))),
        ("requires client.ttl", lambda: named("client", ttl=Column("ttl", Integer, nullable=False))),
        ("requires client.strict", lambda: named("client", strict=Column("strict", Boolean, nullable=False))),
        ("allows NULL in client.name", lambda: named("client", name=Column("name", String(64)))),
        (
            "changes the type of client.name",
            lambda: named("client", name=Column("name", String(63), nullable=False)),
        ),
        ("changes the type of client.ttl", lambda: named("client", ttl=Column("ttl", String(9)))),
        ("restricts client (name)", lambda: named("client", UniqueConstraint("name"))),
        ("restricts client (name)", lambda: named("client", Index("added", "name", unique=True))),
        ("restricts client (ttl)", lambda: named("client", CheckConstraint("ttl > 1"))),
        ("restricts client (ttl)", lambda: named("client", ForeignKeyConstraint(["ttl"], ["client.id"]))),
    ],
)
def test_a_change_that_the_version_before_would_notice_is_found(change: str, after: Callable[[], MetaData]) -> None:
    assert [*compare(named("client"), after(), set())] == [change]


@pytest.mark.parametrize(
    "after",
    [
        lambda: named("client"),
        lambda: named("client", Index("added", "name")),
        lambda: named("client", added=Column("added", Integer)),
        lambda: named("client", CheckConstraint("added > 1"), added=Column("added", Integer, server_default="7")),
        lambda: named("client", name=Column("name", String(65), nullable=False)),
        lambda: named("client", strict=None),
    ],
)
def test_an_expansion_is_allowed_and_so_is_the_removal_of_what_is_retired(after: Callable[[], MetaData]) -> None:
    assert [*compare(named("client"), after(), {"client.strict"})] == []
    assert [*compare(named("client"), MetaData(), {"client"})] == []


@pytest.mark.both_databases
@pytest.mark.parametrize("schema", SCHEMAS, ids=["authserver", "resourceserver", "directory"])
def test_no_migration_breaks_the_version_before(schema: Schema, empty_database: URL) -> None:
    assert refused_changes(empty_database, schema) == []


@pytest.mark.both_databases
def test_the_changes_of_a_migration_are_found_in_the_database(empty_database: URL, tmp_path: Path) -> None:
    """Whatever statements made them."""
    schema = with_next_revision(Database.schema, tmp_path / "expanded", EXPAND, retires=["client.token_ttl"])
    schema = with_next_revision(schema, tmp_path / "contracted", CONTRACT, retires=["client_grant"])
    schema = with_next_revision(schema, tmp_path / "broken", BREAK.replace("token_ttl", "added"))
    assert sorted(refused_changes(empty_database, schema)) == [
        "0003 drops client_grant",
        "0004 drops client.token_epoch",
        "0004 requires client.added",
        "0004 requires client.strict",
        "0004 restricts client (client_name)",
    ]


@pytest.mark.both_databases
def test_a_database_of_the_next_version_is_used_and_left_alone(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that restarts before it is upgraded runs `init`, and serves."""
    later = with_next_revision(Database.schema, tmp_path / "next", EXPAND)
    migrations.upgrade(database.url, later)
    database.migrate()
    with caplog.at_level(logging.WARNING):
        database.require_current()
    assert caplog.messages == ["the database has the schema of the next version: upgrade this node as well"]
    migrations.require_current(database.engine, later)


@pytest.mark.both_databases
def test_a_database_of_the_version_after_the_next_is_refused(database: Database, tmp_path: Path) -> None:
    later = with_next_revision(Database.schema, tmp_path / "next", "")
    later = with_next_revision(later, tmp_path / "after", "")
    migrations.upgrade(database.url, later)
    for use in (database.migrate, database.require_current):
        with pytest.raises(SchemaMismatch, match="newer version"):
            use()


def test_check_names_the_schema_of_the_next_version_and_export_refuses_it(
    empty_database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTHSERVER_DATABASE_URL", empty_database.render_as_string())
    for command in ("init", "export before.jsonl"):
        assert CliRunner().invoke(main, command.split()).exit_code == 0
    migrations.upgrade(empty_database, with_next_revision(Database.schema, tmp_path / "next", EXPAND))
    check = CliRunner().invoke(main, ["check", "--output", "json"])
    assert "with the schema of the next version" in check.output
    export = CliRunner().invoke(main, ["export", "after.jsonl"])
    assert export.exit_code == 1
    assert "Export with that version" in export.output
    assert not (tmp_path / "after.jsonl").exists()
