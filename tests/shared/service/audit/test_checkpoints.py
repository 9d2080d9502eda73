"""The checkpoints of the audit log."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL
from support.audit import KEYS, TABLES, AuditLog, allowed, audit_log
from support.clock import FakeClock

from gatehouse.shared.service.audit import checkpoints
from gatehouse.shared.service.audit.checkpoints import INTERVAL, CheckpointRefused, listed_until, write_checkpoint

pytestmark = pytest.mark.both_databases

DAY = 86400


@pytest.fixture
def log(empty_database: URL, clock: FakeClock) -> Iterator[AuditLog]:
    with audit_log(empty_database, clock) as log:
        yield log


def heads(log: AuditLog) -> list[list[int]]:
    """Return the sequences in each checkpoint."""
    contents = log.select("content", "kind = 'heads'", "audit_checkpoint")
    return [[head[0] for head in json.loads(content)["heads"].values()] for (content,) in contents]


def numbers(log: AuditLog) -> list[int]:
    return [number for (number,) in log.select("number", table="audit_checkpoint")]


def test_a_checkpoint_lists_the_last_row_of_each_writer(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_STEP", 2)
    monkeypatch.setattr(checkpoints, "_LOOKUPS", 1)
    log.record("a", "b", "c")
    log.change("d", "e")
    written = log.checkpoint()
    assert written is not None
    content = json.loads(written.content)
    assert content["last"] == 5
    ends = log.select("writer, sequence, link, time", "action IN ('c', 'e')")
    assert content["heads"] == {writer: [*end] for writer, *end in ends}


def test_a_writer_without_new_rows_is_listed_once_more(log: AuditLog) -> None:
    for actions in (("a", "b", "c"), ("a",), ("a", "b")):
        log.change(*actions)
        log.checkpoint()
        log.restart()
    log.checkpoint()
    assert heads(log) == [[3], [3, 1], [1, 2]]


def test_there_is_one_checkpoint_a_minute(log: AuditLog, clock: FakeClock) -> None:
    assert log.checkpoint() is None, "nothing was recorded"
    for seconds in range(100):
        log.change(str(seconds))
        write_checkpoint(log.engine, TABLES, KEYS, clock())
        clock.advance(1)
    assert numbers(log) == [1, 2]


def test_a_checkpoint_from_the_future_does_not_stop_them(log: AuditLog, clock: FakeClock) -> None:
    log.change("a")
    clock.advance(DAY)
    log.checkpoint()
    clock.advance(-DAY)
    log.change("b")
    log.checkpoint()
    assert numbers(log) == [1, 2]


@pytest.mark.parametrize("interval", [INTERVAL, 0])
def test_of_two_processes_one_writes_the_checkpoint_of_a_minute(
    log: AuditLog, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    """At the end of a process, both do: only its own is sure to list its last rows."""
    log.change("a")
    lock = checkpoints.lock_checkpoints

    def lose_the_race(connection: Any) -> None:
        lock(connection)
        content = {"last": 1, "heads": {}}
        checkpoints.append_checkpoint(connection, TABLES, KEYS, None, clock(), "heads", content)

    monkeypatch.setattr(checkpoints, "lock_checkpoints", lose_the_race)
    written = write_checkpoint(log.engine, TABLES, KEYS, clock(), interval=interval)
    assert (written is None) == bool(interval)
    assert numbers(log) == ([1] if interval else [1, 2])
    assert log.finding is None


@pytest.mark.only_on("postgresql")
def test_a_row_that_is_committed_late_is_in_a_later_checkpoint(log: AuditLog) -> None:
    with log.database.write() as late, log.rows.inserted(late, [log.rows.row(allowed("late"))]):
        log.change("early")
        log.checkpoint()
    log.restart()
    log.change("further")
    log.checkpoint()
    assert log.select("action") == [("late",), ("early",), ("further",)]
    [(late_writer,)] = log.select("writer", "action = 'late'")
    contents = [json.loads(content) for (content,) in log.select("content", table="audit_checkpoint")]
    assert [late_writer in content["heads"] for content in contents] == [False, True]


@pytest.mark.threat("T-149")
@pytest.mark.parametrize("moved", ["old", "new"])
@pytest.mark.parametrize("far", [4_000_000_000_000, 10**18 - 2])
def test_a_raised_id_does_not_stop_checkpoints(log: AuditLog, moved: str, far: int) -> None:
    """Source: review of issue 13. A range up to that id has no end, and later rows would stay below it."""
    log.change("old")
    log.restart()
    log.change("new")
    assert log.checkpoint() is not None
    log.restart()
    log.change("later")
    log.execute("UPDATE audit_event SET id = :far WHERE action = :moved", far=far, moved=moved)
    assert log.checkpoint() is not None
    log.restart()
    log.change("last")
    written = log.checkpoint()
    assert written is not None
    [(writer, *end)] = log.select("writer, sequence, link, time", "action = 'last'")
    assert json.loads(written.content)["heads"][writer] == end
    assert log.finding is not None


@pytest.mark.threat("T-149")
def test_the_highest_id_never_falls_below_that_of_a_checkpoint(log: AuditLog) -> None:
    log.change("a", "b")
    assert log.checkpoint() is not None
    log.change("c")
    assert log.checkpoint() is not None
    log.execute("DELETE FROM audit_event WHERE action = 'c'")
    with pytest.raises(CheckpointRefused, match=r"id of an event is 2, but checkpoint 2 .* up to the id 3"):
        log.checkpoint()
    log.change("d", "e")
    assert log.checkpoint() is not None
    assert log.finding is not None


@pytest.mark.threat("T-149")
@pytest.mark.only_on("postgresql")
def test_a_sequence_that_was_set_back_stops_checkpoints(log: AuditLog) -> None:
    """Source: a raised id that the sequence covers until a checkpoint has read it."""
    log.change("a")
    log.execute("SELECT setval('audit_event_id_seq', 1000)")
    log.change("b")
    assert log.checkpoint() is not None
    assert log.finding is None
    log.execute("SELECT setval('audit_event_id_seq', 1)")
    log.change("c")
    with pytest.raises(CheckpointRefused, match=r"id of an event is 2, but checkpoint 1 .* up to the id 1001"):
        log.checkpoint()


def test_pruning_does_not_lower_the_highest_id(log: AuditLog, clock: FakeClock) -> None:
    log.change("a", "b")
    assert log.checkpoint() is not None
    clock.advance(3600)
    assert log.prune() == 1
    assert log.checkpoint() is None, "there is nothing new"
    log.change("c")
    assert log.checkpoint() is not None
    assert log.finding is None


def test_a_checkpoint_that_is_written_meanwhile_is_not_ahead(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.change("a")
    assert log.checkpoint() is not None
    log.change("b")
    last_checkpoint = checkpoints.last_checkpoint

    def write_first(*arguments: Any) -> Any:
        if arguments[-1] == checkpoints.HEADS:
            monkeypatch.setattr(checkpoints, "last_checkpoint", last_checkpoint)
            log.change("c")
            write_checkpoint(log.engine, TABLES, KEYS, log.clock(), interval=0)
        return last_checkpoint(*arguments)

    monkeypatch.setattr(checkpoints, "last_checkpoint", write_first)
    log.checkpoint()
    assert numbers(log) == [1, 2]
    assert log.finding is None


def test_events_are_listed_until_the_oldest_one_after_the_last_checkpoint(log: AuditLog, clock: FakeClock) -> None:
    def until() -> float:
        with log.engine.begin() as connection:
            return listed_until(connection, TABLES, clock())

    assert until() == clock()
    log.change("a")
    clock.advance(300)
    log.change("of a clock that is ahead")
    clock.advance(-200)
    assert write_checkpoint(log.engine, TABLES, KEYS, clock()) is not None
    clock.advance(3600)
    assert until() == clock()
    recorded = clock()
    log.change("b")
    clock.advance(60)
    log.change("c")
    assert until() == recorded
    log.checkpoint()
    assert until() == clock()


@pytest.mark.threat("T-149")
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_checkpoint SET content = replace(content, ',', ', ') WHERE number = {number}",
        "UPDATE audit_checkpoint SET content = '' WHERE number = {number}",
        "UPDATE audit_checkpoint SET kid = 'unknown' WHERE number = {number}",
        "DELETE FROM audit_checkpoint WHERE number < {number}",
    ],
)
@pytest.mark.parametrize("pruned", [False, True])
def test_no_checkpoint_begins_from_an_altered_one(log: AuditLog, clock: FakeClock, change: str, pruned: bool) -> None:
    """Rows could be kept out of every checkpoint, and removed later."""
    log.change("a")
    log.checkpoint()
    if pruned:
        clock.advance(DAY)
        log.change("b")
        assert log.prune() == 1
        # The first checkpoint is deleted, and the one after the boundary can be verified.
        assert log.checkpoint() is not None
    log.change("c")
    assert log.checkpoint() is not None
    log.change("d")
    log.execute(change.format(number=numbers(log)[-1]))
    with pytest.raises(CheckpointRefused, match="cannot be verified with the audit keys"):
        log.checkpoint()
    assert log.finding is not None
