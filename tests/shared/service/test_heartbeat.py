"""The heartbeat: it notices every outage of writing, and its end."""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from support.audit import audit_keys
from support.clock import FakeClock
from support.databases import engine_with_tables

from gatehouse.shared.service import deadline, heartbeat
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent, AuditTables
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.database import READ_ONLY, new_metadata, open_engine
from gatehouse.shared.service.failures import explain_database_failure
from gatehouse.shared.service.heartbeat import (
    INTERVAL,
    MAX_AGE,
    RETRY,
    SERVER,
    WriteHealth,
    heartbeat_table,
    last_heartbeat,
    write_heartbeat,
)

METADATA = new_metadata()
TABLE = AuditTables.declare(METADATA).events
heartbeat_table(METADATA)
EVENT = AuditEvent(AuditAction.TOKEN_ISSUE, "allowed")

on_both = pytest.mark.both_databases


@pytest.fixture
def engine(empty_database: URL) -> Iterator[Engine]:
    with engine_with_tables(empty_database, METADATA) as engine:
        yield engine


@pytest.fixture
def path(engine: Engine) -> Path:
    return Path(str(engine.url.database))


@pytest.fixture
def writer(engine: Engine, clock: FakeClock) -> Iterator[AuditWriter]:
    writer = AuditWriter(engine, AuditRows(TABLE, audit_keys, clock))
    yield writer
    writer.close()


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[str], None]:
    """Wait until the heartbeat logs a change. It retries at once."""
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.01)
    monkeypatch.setattr(heartbeat, "RETRY", 0.01)
    seen, changed = [], threading.Condition()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with changed:
                seen.append(record.getMessage())
                changed.notify_all()

    handler = Handler()
    monkeypatch.setattr(heartbeat.log, "handlers", [handler])
    caplog.set_level(logging.INFO, heartbeat.log.name)

    def wait_for(text: str) -> None:
        with changed:
            assert changed.wait_for(lambda: any(text in line for line in seen), 10), seen

    return wait_for


def write(engine: Engine) -> None:
    with engine.begin() as connection:
        write_heartbeat(connection, SERVER, 1_800_000_000)


def reason_of_failure(engine: Engine) -> str:
    with deadline.renewed(0), pytest.raises(DBAPIError) as failure:
        write(engine)
    return explain_database_failure(failure.value)


@on_both
def test_a_heartbeat_replaces_the_one_before(engine: Engine) -> None:
    for now in (1_800_000_000, 1_800_000_005.9):
        with engine.begin() as connection:
            write_heartbeat(connection, SERVER, now)
            write_heartbeat(connection, "check", 1)
    with engine.begin() as connection:
        assert last_heartbeat(connection, SERVER) == 1_800_000_005
        assert last_heartbeat(connection, "none") is None


def test_a_locked_file_is_noticed(engine: Engine, path: Path) -> None:
    write(engine)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "Another process is writing" in reason_of_failure(engine)
    write(engine)


def test_a_full_disk_is_noticed(engine: Engine) -> None:
    write(engine)
    # A limit on the number of pages fails as a full disk does.
    with engine.begin() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(OperationalError) as failure, engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t AS SELECT zeroblob(100000)")
    assert "disk of the database is full" in explain_database_failure(failure.value)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_moved_or_replaced_is_noticed(engine: Engine, path: Path, replaced: bool) -> None:
    """SQLite would go on to write to the file that is no longer there."""
    write(engine)
    files = list(path.parent.glob(f"{path.name}*"))
    for file in files:
        file.rename(file.with_name(f"moved-{file.name}"))
    if replaced:
        path.touch()
    assert "moved, deleted or replaced" in reason_of_failure(engine)
    with engine.execution_options(**READ_ONLY).connect() as reader:
        assert last_heartbeat(reader, SERVER), "reading still works"
    for file in files:
        file.with_name(f"moved-{file.name}").rename(file)
    write(engine)


def test_a_missing_file_is_not_created_again(engine: Engine, path: Path) -> None:
    write(engine)
    engine.dispose()
    path.unlink()
    assert "does not answer" in reason_of_failure(engine)
    assert not path.exists()


def test_a_file_that_a_new_connection_could_not_write_is_noticed(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine)
    monkeypatch.setattr(os, "access", lambda file, mode: (file, mode) != (path, os.W_OK))
    assert "read-only" in reason_of_failure(engine)


def test_a_database_that_only_reads_is_noticed(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    assert "read-only" in reason_of_failure(engine)


@pytest.mark.only_on("postgresql")
def test_a_server_in_recovery_or_set_to_read_only_is_noticed(engine: Engine) -> None:
    reading = open_engine(engine.url.update_query_dict({"options": "-c default_transaction_read_only=on"}))
    assert "read-only" in reason_of_failure(reading)
    reading.dispose()


def test_health_judges_the_result_and_the_age_of_the_last_write(clock: FakeClock) -> None:
    health = WriteHealth(clock)
    assert (health.ok, health.due_in()) == (True, 0), "a new process writes at once"
    health.succeed()
    clock.advance(2)
    assert health.due_in() == INTERVAL - 2
    clock.advance(MAX_AGE - 2)
    assert (health.ok, health.due_in()) == (True, 0)
    clock.advance(0.1)
    assert not health.ok, "a write hangs"
    health.succeed()
    assert health.ok
    health.fail(OSError())
    assert (health.ok, health.due_in()) == (False, RETRY)
    health.succeed()
    assert (health.ok, health.due_in()) == (True, INTERVAL)


def test_the_first_failure_and_the_recovery_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    health = WriteHealth()
    for _ in range(3):
        health.fail(OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked")))
    health.succeed()
    health.succeed()
    health.fail(OSError("/secret/path"))
    assert [record.getMessage() for record in caplog.records] == [
        "the database accepts no writes: Another process is writing to the database. Try again.",
        "the database accepts writes again",
        "the database accepts no writes: OSError",
    ]


@on_both
def test_an_outage_without_a_request_is_noticed_and_so_is_its_end(
    writer: AuditWriter, engine: Engine, changes: Callable[[str], None]
) -> None:
    writer.start()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE heartbeat RENAME TO elsewhere")
    changes("accepts no writes")
    assert not writer.available
    with pytest.raises(AuditUnavailable):
        writer.record(EVENT)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO heartbeat")
    changes("accepts writes again")
    assert writer.available
    writer.record(EVENT)


@on_both
def test_an_outage_that_met_only_refusals_ends_without_a_request(
    writer: AuditWriter, engine: Engine, changes: Callable[[str], None]
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE audit_event RENAME TO elsewhere")
    with pytest.raises(AuditUnavailable):
        writer.commit_and_wait(EVENT)
    assert not writer.available
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO audit_event")
    writer.start()
    changes("accepts writes again")
    assert writer.available


def test_a_heartbeat_that_hangs_makes_the_writer_unavailable(engine: Engine, clock: FakeClock) -> None:
    monotonic = FakeClock()
    writer = AuditWriter(engine, AuditRows(TABLE, audit_keys, clock), monotonic=monotonic)
    with engine.begin():
        writer.start()
        assert writer.available
        monotonic.advance(MAX_AGE + 1)
        assert not writer.available
    writer.close()
    assert not writer.available, "its thread has ended"
