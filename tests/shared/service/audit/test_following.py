"""Following the audit log: no event is skipped, and none is read twice."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import URL, Connection
from support.audit_commands import TABLE, Log, audit_log
from support.clock import FakeClock
from support.databases import bring_back, take_away

from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.audit.following import (
    BATCH,
    TRANSACTION_LIMIT,
    Following,
    cursor_before,
    parse_cursor,
    read_cursor_file,
    require_primary,
    write_cursor_file,
)
from gatehouse.shared.service.audit.ids import newest_id
from gatehouse.shared.service.cli import Refusal
from gatehouse.shared.service.database import Database

both_databases = pytest.mark.both_databases
on_postgresql = pytest.mark.only_on("postgresql")

Read = Callable[[], list[str]]


@pytest.fixture
def log(empty_database: URL, clock: FakeClock, tmp_path: Path) -> Iterator[Log]:
    with audit_log(empty_database, clock, tmp_path) as log:
        yield log


@pytest.fixture
def database(log: Log) -> Iterator[Database]:
    with Database(log.url) as database:
        yield database


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def following(database: Database, clock: FakeClock, reports: list[str]) -> Following:
    return Following(database, TABLE, 0, report=reports.append, monotonic=clock)


@pytest.fixture
def read(following: Following) -> Read:
    """Read the actions of the next events."""
    return lambda: [row["action"] for row in following.read()[0]]


@both_databases
def test_each_event_is_read_once_in_order(log: Log, following: Following, read: Read) -> None:
    assert read() == []
    for action in "abc":
        log.add(action)
    assert read() == ["a", "b", "c"]
    assert read() == []
    log.add("d")
    assert read() == ["d"]
    assert following.cursor == 4


def test_many_events_are_read_in_batches(log: Log, following: Following) -> None:
    with log.engine.begin() as connection:
        log.insert(connection, *[AuditEvent("many", "allowed")] * (BATCH + 1))
    assert [(len(rows), more) for rows, more in (following.read() for _ in range(2))] == [(BATCH, True), (1, False)]


@both_databases
def test_events_that_do_not_match_move_the_cursor(log: Log, database: Database, reports: list[str]) -> None:
    following = Following(database, TABLE, 0, report=reports.append, client="agent_1")
    for actor in ("agent_2", "agent_1", "agent_2"):
        log.add("token.issue", actor=actor)
    assert [row["id"] for row in following.read()[0]] == [2]
    assert following.cursor == 3


@both_databases
def test_an_outage_is_reported_once_and_survived(log: Log, database: Database, read: Read, reports: list[str]) -> None:
    log.add("before")
    assert read() == ["before"]
    log.engine.dispose()
    database.close()
    take_away(log.url)
    assert read() == read() == []
    bring_back(log.url)
    log.add("after")
    assert read() == ["after"]
    assert len(reports) == 2
    assert "Waiting for it." in reports[0]
    assert reports[1] == "The database answers again."


@both_databases
def test_a_cursor_beyond_the_log_is_refused(log: Log, database: Database) -> None:
    """The database was restored from a backup: its next events would have ids that the collector believes it has."""
    log.add("only")
    with pytest.raises(Refusal, match="The cursor 2 is beyond the newest event, 1"):
        Following(database, TABLE, 2, report=print).read()


def test_another_file_in_the_place_of_the_database_is_noticed(log: Log, read: Read, tmp_path: Path) -> None:
    log.add("old")
    assert read() == ["old"]
    log.engine.dispose()
    path = Path(str(log.url.database))
    path.rename(path.with_name("moved.db"))
    with audit_log(log.url, log.clock, tmp_path), pytest.raises(Refusal, match="beyond the newest event, 0"):
        read()


def move(log: Log, action: str, far: int) -> None:
    """Give an event another id, as someone who can write to the database."""
    with log.engine.begin() as connection:
        connection.execute(TABLE.update().where(TABLE.c.action == action).values(id=far))


@pytest.mark.threat("T-149")
@both_databases
def test_an_event_with_a_raised_id_hides_no_later_one(log: Log, read: Read, reports: list[str]) -> None:
    """Source: review of issue 13. A cursor at that id would pass all later events."""
    log.add("old")
    log.add("new")
    assert read() == ["old", "new"]
    move(log, "old", 4_000_000_000_000)
    log.add("later")
    if log.engine.dialect.name == "sqlite":
        # Later ids follow the altered one.
        assert read() == ["old", "later"]
        assert reports == []
    else:
        assert read() == ["later"]
        [report] = reports
        assert report.startswith("The event with the id 4000000000000 is omitted: the database has not assigned")
    log.add("last")
    assert read() == ["last"]
    assert len(reports) <= 1


@pytest.mark.threat("T-149")
@both_databases
def test_an_id_that_no_database_assigns_is_not_passed(
    log: Log, database: Database, following: Following, read: Read, reports: list[str], clock: FakeClock
) -> None:
    log.add("old")
    log.add("new")
    assert read() == ["old", "new"]
    clock.advance(1)
    since = clock()
    log.add("later")
    move(log, "later", 2**63 - 1)
    assert read() == read() == []
    assert following.cursor == 2
    assert len(reports) == 1
    with database.connect() as connection:
        assert newest_id(connection, TABLE) == 2
        assert cursor_before(connection, TABLE, since) == 2


@pytest.mark.threat("T-149")
@on_postgresql
def test_a_sequence_that_was_set_back_stops_following(log: Log, read: Read) -> None:
    """Source: a raised id that the sequence covers for a moment."""
    log.add("old")
    log.add("new")
    set_sequence(log, 1000)
    move(log, "new", 1000)
    assert read() == ["old", "new"]
    assert read() == []
    set_sequence(log, 2)
    log.add("later")
    with pytest.raises(Refusal, match=r"The cursor 1000 is beyond the newest event, 3.*ids of events were altered"):
        read()


def set_sequence(log: Log, value: int) -> None:
    with log.engine.begin() as connection:
        connection.exec_driver_sql(f"SELECT setval('audit_event_id_seq', {value})")


@on_postgresql
def test_an_event_that_commits_after_a_later_one_is_not_skipped(log: Log, following: Following, read: Read) -> None:
    with log.engine.connect() as slow:
        begin(log, slow, "first")
        log.add("second")
        assert read() == []
        assert following.cursor == 0
        log.add("third")
        slow.commit()
    assert read() == ["first", "second", "third"]
    assert read() == []


@on_postgresql
def test_events_before_a_gap_are_read_at_once(log: Log, read: Read) -> None:
    log.add("first")
    with log.engine.connect() as slow:
        begin(log, slow, "second")
        log.add("third")
        assert read() == ["first"]
        slow.commit()
    assert read() == ["second", "third"]


@on_postgresql
def test_the_ids_of_a_rollback_are_not_waited_for(log: Log, read: Read) -> None:
    with log.engine.connect() as slow:
        begin(log, slow, "never")
        log.add("second")
        assert read() == []
        slow.rollback()
    assert read() == ["second"]


@on_postgresql
def test_a_gap_waits_only_for_transactions_that_were_open_when_it_was_seen(log: Log, read: Read) -> None:
    with log.engine.connect() as first, log.engine.connect() as later:
        begin(log, first, "never")
        log.add("second")
        assert read() == []
        begin(log, later, "third")
        first.rollback()
        assert read() == ["second"]
        log.add("fourth")
        assert read() == []
        later.commit()
    assert read() == ["third", "fourth"]


@on_postgresql
def test_a_transaction_that_only_reads_is_not_waited_for(log: Log, read: Read) -> None:
    with log.engine.connect() as reader, log.engine.connect() as undone:
        reader.execute(TABLE.select())
        begin(log, undone, "never")
        undone.rollback()
        log.add("second")
        assert read() == ["second"]


@on_postgresql
def test_a_transaction_that_stays_open_is_not_waited_for_forever(
    log: Log, read: Read, clock: FakeClock, reports: list[str]
) -> None:
    with log.engine.connect() as lost:
        begin(log, lost, "lost")
        log.add("second")
        assert read() == []
        clock.advance(TRANSACTION_LIMIT)
        assert reports == []
        assert read() == ["second"]
        lost.rollback()
    assert len(reports) == 1
    assert "open for more than 60 s" in reports[0]
    assert "below the id 2" in reports[0]


def begin(log: Log, connection: Connection, action: str) -> None:
    """Record an event in a transaction that stays open."""
    log.insert(connection, AuditEvent(action, "allowed"))


def test_a_standby_is_refused() -> None:
    standby: Any = SimpleNamespace(dialect=SimpleNamespace(name="postgresql"), scalar=lambda _: True)
    with pytest.raises(Refusal, match="on its primary"):
        require_primary(standby)


@both_databases
def test_the_first_cursor_is_that_of_now_or_of_a_time(log: Log, database: Database, clock: FakeClock) -> None:
    with database.connect() as connection:
        assert newest_id(connection, TABLE) == 0
        assert cursor_before(connection, TABLE, clock()) == 0
    times = []
    for _ in range(3):
        times.append(clock())
        log.add("event")
        clock.advance(60)
    with database.connect() as connection:
        require_primary(connection)
        assert newest_id(connection, TABLE) == 3
        assert [cursor_before(connection, TABLE, time) for time in (0, *times, clock())] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("value", ["", "-1", "1.5", "\u0661", "9" * 19, "x\x1b[2J"], ids=ascii)
def test_a_malformed_cursor_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="not a cursor") as error:
        parse_cursor(value)
    assert str(error.value).isprintable()


def test_the_cursor_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "audit.cursor"
    assert read_cursor_file(file) is None
    for cursor in (0, 123_456_789_012):
        write_cursor_file(file, cursor)
        assert read_cursor_file(file) == cursor
    assert [path.name for path in tmp_path.iterdir()] == ["audit.cursor"]
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"12 13", b"\xff", b"1" * 65], ids=["empty", "two", "no text", "long"])
def test_a_corrupt_cursor_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "audit.cursor"
    file.write_bytes(content)
    with pytest.raises(Refusal, match=r"audit\.cursor has no cursor"):
        read_cursor_file(file)
