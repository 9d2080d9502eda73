"""The checkpoints of the audit log, and the thread that writes them."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL
from support.audit import KEYS, TABLES, AuditLog, allowed, audit_log
from support.clock import FakeClock
from support.logs import logging_put_back
from support.waiting import wait_until

from gatehouse.shared.service.audit import checkpoints
from gatehouse.shared.service.audit.checkpoints import INTERVAL, CheckpointRefused, write_checkpoint
from gatehouse.shared.service.audit.upkeep import AuditUpkeep
from gatehouse.shared.service.logs import configure_logs

pytestmark = pytest.mark.both_databases

DAY = 86400


@pytest.fixture
def log(empty_database: URL, clock: FakeClock) -> Iterator[AuditLog]:
    with audit_log(empty_database, clock) as log:
        yield log


def upkeep_of(log: AuditLog, **options: Any) -> AuditUpkeep:
    return AuditUpkeep(log.engine, TABLES, KEYS, log.clock, **options)


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


def test_each_checkpoint_is_logged(log: AuditLog, capfd: pytest.CaptureFixture[str]) -> None:
    log.change("a")
    with logging_put_back():
        configure_logs("json")
        capfd.readouterr()
        upkeep_of(log).run_once()
        upkeep_of(log).run_once()
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    kept = [line for line in lines if line["event"] == "audit checkpoint"]
    [(number, kid, link)] = log.select("number, kid, link", table="audit_checkpoint")
    assert [(line["checkpoint"], line["kid"], line["link"]) for line in kept] == [(number, kid, link)]
    assert log.verify(external=kept).finding is None


def test_the_thread_writes_checkpoints_and_a_last_one_at_the_end(log: AuditLog) -> None:
    upkeep = upkeep_of(log, interval=0.001)
    log.change("a")
    upkeep.start()
    wait_until(lambda: numbers(log) == [1])
    log.change("b")
    upkeep.close()
    assert heads(log) == [[1], [2]]


def test_a_thread_that_was_not_started_writes_nothing(log: AuditLog) -> None:
    log.change("a")
    upkeep_of(log).close()
    assert numbers(log) == []


def test_an_outage_is_logged_once_and_so_is_its_end(log: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gatehouse")
    upkeep = upkeep_of(log)
    log.change("a")
    log.execute("ALTER TABLE audit_checkpoint RENAME TO elsewhere")
    upkeep.run_once()
    upkeep.run_once()
    log.execute("ALTER TABLE elsewhere RENAME TO audit_checkpoint")
    upkeep.run_once()
    upkeep.run_once()
    assert caplog.text.count("fail and will be retried") == 1
    assert caplog.text.count("work again") == 1
    assert numbers(log) == [1]


def test_events_past_the_retention_are_pruned_a_day_at_a_time(log: AuditLog, clock: FakeClock) -> None:
    upkeep = upkeep_of(log, retention=30)
    for day in range(34):
        log.change(str(day))
        upkeep.run_once()
        oldest = int(log.select("action")[0][0])
        assert day - oldest <= 31
        clock.advance(DAY)
    assert (oldest, len(log.select("number", "kind = 'prune'", "audit_checkpoint"))) == (4, 2)
    assert log.finding is None


def test_evidence_that_stays_is_looked_at_once_a_day(
    log: AuditLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log.change("a", "b")
    log.execute("DELETE FROM audit_event WHERE id = 1")
    clock.advance(40 * DAY)
    upkeep = upkeep_of(log, retention=30)
    for number in range(3):
        log.change(str(number))
        upkeep.run_once()
        clock.advance(60)
    assert "were pruned" not in caplog.text
    assert [action for (action,) in log.select("action")] == ["b", "0", "1", "2"]


def test_a_refused_prune_says_why_in_the_log(log: AuditLog, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    log.change("a", "b")
    upkeep = upkeep_of(log, retention=30)
    clock.advance(40 * DAY)
    log.change("c")
    upkeep.run_once()
    log.execute("UPDATE audit_checkpoint SET kid = 'unknown' WHERE kind = 'prune'")
    clock.advance(40 * DAY)
    log.change("d")
    upkeep.run_once()
    assert "cannot be verified with the audit keys, so nothing is pruned" in caplog.text


def test_without_a_retention_nothing_is_pruned(log: AuditLog, clock: FakeClock) -> None:
    log.change("a")
    clock.advance(1000 * DAY)
    log.change("b")
    upkeep_of(log).run_once()
    assert len(log.select("id")) == 2
