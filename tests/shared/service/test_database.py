"""Opening databases: URLs, pragmas, locks, file modes."""

import os
import re
import sqlite3
import stat
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError

from gatehouse.shared.service import deadline
from gatehouse.shared.service.database import (
    READ_ONLY,
    SNAPSHOT,
    create_file,
    open_engine,
    parse_database_url,
)
from gatehouse.shared.service.deadline import renewed
from gatehouse.shared.service.failures import explain_database_failure

pytestmark = pytest.mark.both_databases

SECRET = "hunter2"
only_on_sqlite = pytest.mark.only_on("sqlite")


@pytest.fixture
def engine(empty_database: URL) -> Iterator[Engine]:
    create_file(empty_database)
    engine = open_engine(empty_database)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE parent (id INTEGER PRIMARY KEY, secret TEXT UNIQUE)")
        connection.exec_driver_sql("CREATE TABLE child (parent_id INTEGER REFERENCES parent (id))")
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    ("text_", "kind", "database"),
    [
        ("sqlite:///var/file.db", "sqlite", "var/file.db"),
        ("sqlite:////srv/file.db", "sqlite", "/srv/file.db"),
        ("postgresql://user@host/name", "postgresql", "name"),
        ("postgresql+psycopg://user:pw@host:5433/name", "postgresql", "name"),
    ],
)
def test_a_sqlite_file_or_a_postgresql_server_is_a_database(text_: str, kind: str, database: str) -> None:
    url = parse_database_url(text_)
    assert (url.get_backend_name(), url.database) == (kind, database)


@pytest.mark.parametrize(
    ("text_", "remediation"),
    [
        ("", "write sqlite:///var/file.db or postgresql://user@host/name"),
        ("hunter2", "write sqlite:///var/file.db or postgresql://user@host/name"),
        ("postgresql://user:hunter2@host:port/name", "write sqlite:///var/file.db or postgresql://user@host/name"),
        ("nosuch://user:hunter2@host/name", "only sqlite:// and postgresql:// databases"),
        ("mysql://user:hunter2@host/name", "only sqlite:// and postgresql:// databases"),
        ("sqlite://", "name a file"),
        ("sqlite://var/hunter2.db", "three slashes"),
        ("postgresql://user:p@hunter2@host/name", "write %40"),
        ("sqlite:///:memory:", "name a file"),
        ("postgresql://user@host/name?password=hunter2", "write USER:PASSWORD@HOST"),
    ],
)
def test_any_other_url_is_refused_without_its_password(text_: str, remediation: str) -> None:
    with pytest.raises(ValueError, match=remediation) as refusal:
        parse_database_url(text_)
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__cause__ is None


def check_pragmas(rows: list[object]) -> None:
    assert rows == ["wal", 1, 5000, 2]


PRAGMAS = ("journal_mode", "foreign_keys", "busy_timeout", "temp_store")


@only_on_sqlite
def test_sqlite_uses_wal_foreign_keys_and_a_busy_timeout(engine: Engine) -> None:
    with engine.connect() as connection:
        check_pragmas([connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS])


@only_on_sqlite
def test_a_transaction_on_sqlite_waits_for_a_lock_until_the_deadline(engine: Engine) -> None:
    def busy_timeout() -> int:
        with engine.begin() as connection:
            return int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar() or 0)

    for limit, expected in ((60, 5000), (2.1, 2000), (0.2, 0), (0, 0)):
        with deadline.renewed(limit):
            assert busy_timeout() == expected
    assert busy_timeout() == 5000, "without a deadline"


@only_on_sqlite
def test_a_transaction_that_cannot_start_in_time_fails_at_once(engine: Engine) -> None:
    with other_process(engine) as other:
        other.execute("BEGIN IMMEDIATE")
        with deadline.renewed(0), pytest.raises(OperationalError, match="locked"), engine.begin():
            pytest.fail("the lock is held")
        other.execute("COMMIT")
        with deadline.renewed(0), engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO parent (id) VALUES (1)")


@only_on_sqlite
def test_writers_of_one_process_take_turns(engine: Engine) -> None:
    """A second one asks SQLite for its lock, which knows no queue, only after the first has ended."""
    begun: list[str] = []
    connected = threading.Event()

    def write() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO parent (id) VALUES (1)")

    with engine.begin():
        event.listen(engine, "before_cursor_execute", lambda *arguments: begun.append(arguments[2]))
        event.listen(engine, "checkout", lambda *_: connected.set())
        second = threading.Thread(target=write)
        second.start()
        connected.wait()
        with deadline.renewed(0), pytest.raises(OperationalError, match="locked"), engine.begin():
            pytest.fail("another transaction writes")
        assert begun == []
    second.join()
    assert "BEGIN IMMEDIATE" in begun


def test_a_dangling_reference_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO parent (id) VALUES (1)")
        connection.exec_driver_sql("INSERT INTO child VALUES (1)")
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO child VALUES (2)")


def other_process(engine: Engine) -> "closing[sqlite3.Connection]":
    """A plain driver connection, which does not wait for locks."""
    return closing(sqlite3.connect(str(engine.url.database), timeout=0, isolation_level=None))


@only_on_sqlite
def test_a_write_transaction_locks_from_its_beginning(engine: Engine) -> None:
    with other_process(engine) as other:
        with engine.begin(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")


@only_on_sqlite
def test_a_read_transaction_keeps_its_snapshot_and_blocks_no_writer(engine: Engine) -> None:
    with other_process(engine) as other, engine.execution_options(**READ_ONLY).begin() as reader:
        assert reader.execute(text("SELECT count(*) FROM parent")).scalar() == 0
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO parent (id) VALUES (1)")
        other.execute("COMMIT")
        # The reader keeps its snapshot.
        assert reader.execute(text("SELECT count(*) FROM parent")).scalar() == 0


def test_readers_continue_while_a_transaction_writes(engine: Engine) -> None:
    reader = engine.execution_options(**READ_ONLY)
    with engine.begin() as writer:
        writer.exec_driver_sql("INSERT INTO parent (id) VALUES (1)")
        with reader.begin() as connection:
            assert connection.execute(text("SELECT count(*) FROM parent")).scalar() == 0
    with reader.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM parent")).scalar() == 1


def test_a_failed_transaction_changes_nothing(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE late (id INTEGER)")
        connection.exec_driver_sql("INSERT INTO parent (id) VALUES (1)")
        raise ZeroDivisionError
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM parent").scalar() == 0
    assert not inspect(engine).has_table("late")


def test_an_error_repeats_no_parameter(engine: Engine) -> None:
    insert = text("INSERT INTO parent (id, secret) VALUES (:id, :secret)")
    with engine.begin() as connection:
        connection.execute(insert, {"id": 1, "secret": SECRET})
    with pytest.raises(IntegrityError) as failure, engine.begin() as connection:
        connection.execute(insert, {"id": 2, "secret": SECRET})
    assert "secret" in str(failure.value)
    assert SECRET not in "".join(traceback.format_exception(failure.value))


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("INSERT INTO parent (secret) VALUES (:value)", id="in the refused row"),
        pytest.param("SELECT CAST(CAST(:value AS TEXT) AS INTEGER)", id="in the message itself"),
    ],
)
def test_an_error_of_postgresql_repeats_no_parameter(engine: Engine, statement: str) -> None:
    with pytest.raises(DBAPIError) as failure, engine.begin() as connection:
        connection.execute(text(statement), {"value": SECRET})
    assert SECRET not in "".join(traceback.format_exception(failure.value))


def settings_of_connection(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return [str(connection.exec_driver_sql(f"SHOW {name}").scalar()) for name in BOUNDS]


BOUNDS = ("statement_timeout", "lock_timeout", "client_encoding")


@pytest.mark.threat("T-130")
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["5s", "0", "UTF8"]),
        ({"options": "-c lock_timeout=70ms"}, ["5s", "70ms", "UTF8"]),
        ({"options": ("-c lock_timeout=70ms", "-c statement_timeout=0")}, ["0", "70ms", "UTF8"]),
        ({"options": "-c client_encoding=latin1", "client_encoding": "latin1"}, ["5s", "0", "UTF8"]),
    ],
    ids=str,
)
def test_postgresql_statements_time_out_unless_the_url_says_otherwise(
    engine: Engine, query: dict[str, Any], expected: list[str]
) -> None:
    bounded = open_engine(engine.url.update_query_dict(query))
    assert settings_of_connection(bounded) == expected
    bounded.dispose()


@pytest.mark.only_on("postgresql")
def test_options_of_the_environment_apply_like_those_of_the_url(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c lock_timeout=70ms")
    for query, expected in (({}, "70ms"), ({"options": "-c lock_timeout=80ms"}, "80ms")):
        bounded = open_engine(engine.url.update_query_dict(query))
        assert settings_of_connection(bounded) == ["5s", expected, "UTF8"]
        bounded.dispose()


@pytest.mark.only_on("postgresql")
def test_the_limits_end_with_the_transaction(engine: Engine) -> None:
    """A pooler gives the connection to another client next."""
    assert settings_of_connection(engine)[0] == "5s"
    with closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
        assert cursor.fetchone() == ("0", "0")


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(("seconds", "shown"), [(2.0, r"(2s|1\d\d\dms)"), (0.0, "1ms")])
def test_a_lock_is_waited_for_until_the_deadline_of_the_request(engine: Engine, seconds: float, shown: str) -> None:
    with renewed(seconds):
        assert re.fullmatch(shown, settings_of_connection(engine)[1])


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(("query", "expected"), [({}, True), ({"pgbouncer": "true"}, False)], ids=str)
def test_statements_are_prepared_unless_the_url_names_a_pooler(
    engine: Engine, query: dict[str, str], expected: bool
) -> None:
    repeating = open_engine(engine.url.update_query_dict(query))
    with repeating.connect() as connection:
        for _ in range(9):
            connection.execute(text("SELECT 1"))
            prepared = connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one()
            connection.commit()
    repeating.dispose()
    assert (prepared > 0) is expected


@pytest.mark.only_on("postgresql")
def test_a_snapshot_does_not_change_and_cannot_write(engine: Engine) -> None:
    with engine.execution_options(**SNAPSHOT).connect() as reader:
        assert reader.execute(text("SELECT count(*) FROM parent")).scalar() == 0
        with engine.begin() as writer:
            writer.exec_driver_sql("INSERT INTO parent (id) VALUES (1)")
        assert reader.execute(text("SELECT count(*) FROM parent")).scalar() == 0
        with pytest.raises(DBAPIError, match="ReadOnly"):
            reader.exec_driver_sql("INSERT INTO parent (id) VALUES (2)")


@pytest.mark.only_on("postgresql")
def test_a_migration_has_no_statement_timeout(empty_database: URL) -> None:
    patient = open_engine(empty_database, patient=True)
    assert settings_of_connection(patient) == ["0", "0", "UTF8"]
    patient.dispose()


@pytest.mark.only_on("postgresql")
def test_a_lock_timeout_has_a_remediation(engine: Engine) -> None:
    impatient = open_engine(engine.url.update_query_dict({"options": "-c lock_timeout=20ms"}))
    with engine.begin() as holder:
        holder.exec_driver_sql("LOCK TABLE parent")
        with pytest.raises(OperationalError) as failure, impatient.connect() as connection:
            connection.execute(text("SELECT * FROM parent"))
    with impatient.connect() as connection:
        assert connection.execute(text("SELECT * FROM parent")).all() == []
    impatient.dispose()
    assert "Another process holds a lock" in explain_database_failure(failure.value)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@only_on_sqlite
@pytest.mark.usefixtures("open_umask")
def test_database_files_are_readable_only_by_their_owner(empty_database: URL) -> None:
    create_file(empty_database)
    path = Path(str(empty_database.database))
    engine = open_engine(empty_database)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id INTEGER)")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    engine.dispose()
    assert modes == {"test.db": 0o600, "test.db-wal": 0o600, "test.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@only_on_sqlite
def test_creating_an_existing_file_keeps_its_content(engine: Engine) -> None:
    create_file(engine.url)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM parent").scalar() == 0


def test_no_file_is_created_for_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create_file(parse_database_url("postgresql://user@host/name"))
    assert list(tmp_path.iterdir()) == []
    create_file(parse_database_url("sqlite:///name"))
    assert [file.name for file in tmp_path.iterdir()] == ["name"]


def test_a_file_that_is_not_a_database_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("not a database, but notes of some length\n" * 100)
    with pytest.raises(SQLAlchemyError) as failure, open_engine(parse_database_url(f"sqlite:///{file}")).begin():
        pass
    assert explain_database_failure(failure.value).startswith(
        "The file is not an SQLite database. Check the database URL"
    )


@pytest.mark.parametrize(
    ("host", "told"),
    [("127.0.0.1:1", "127.0.0.1:1: Connection refused"), ("no-such-host.invalid:5432", "no-such-host.invalid")],
)
def test_an_unreachable_server_is_reported_without_the_password(host: str, told: str) -> None:
    url = parse_database_url(f"postgresql://gatehouse:hunter2@{host}/gatehouse")
    with pytest.raises(SQLAlchemyError) as failure, open_engine(url).begin():
        pass
    explained = explain_database_failure(failure.value)
    assert explained.startswith("The database does not answer (OperationalError, ")
    assert told in explained
    assert "hunter2" not in explained
