"""Pruning: it deletes old events, and leaves a log that verifies."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import URL
from support.audit import AuditLog, audit_log
from support.clock import FakeClock

from gatehouse.shared.service.audit import pruning
from gatehouse.shared.service.audit.chain import LINKED
from gatehouse.shared.service.audit.checkpoints import append_checkpoint
from gatehouse.shared.service.audit.pruning import PruningRefused

pytestmark = pytest.mark.both_databases

HOUR = 3600
DAY = 24 * HOUR


@pytest.fixture
def log(empty_database: URL, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[AuditLog]:
    monkeypatch.setattr(pruning, "_BATCH", 3)
    with audit_log(empty_database, clock) as log:
        yield log


def actions(log: AuditLog) -> list[str]:
    return [action for (action,) in log.select("action")]


def boundaries(log: AuditLog) -> list[int]:
    """Return the last deleted sequence of each writer that the last deletion names."""
    *_, (content,) = log.select("content", "kind = 'prune'", "audit_checkpoint")
    return [end[0] for end in json.loads(content)["writers"].values()]


def test_old_events_are_deleted_and_the_rest_verifies(log: AuditLog, clock: FakeClock) -> None:
    log.change("a", "b")
    log.record("c", "d", "e")
    log.checkpoint()
    clock.advance(HOUR / 2)
    log.change("f")
    log.record("g")
    log.checkpoint()
    assert log.prune(HOUR / 4) == 5
    assert actions(log) == ["f", "g"]
    assert log.finding is None
    assert boundaries(log) == [2, 3]


def test_the_newest_event_stays(log: AuditLog, clock: FakeClock) -> None:
    """SQLite would assign its id again."""
    log.change("a", "b", "c", "d")
    log.checkpoint()
    clock.advance(DAY)
    assert log.prune() == 3
    assert log.prune() == 0
    assert actions(log) == ["d"]
    assert log.finding is None


def test_an_empty_log_is_pruned(log: AuditLog) -> None:
    assert log.prune() == 0
    assert log.verify() == (0, 0, None)


def test_old_checkpoints_are_deleted_but_not_the_numbers_after_them(log: AuditLog, clock: FakeClock) -> None:
    for number in range(8):
        log.change(str(number))
        log.checkpoint()
    clock.advance(2 * DAY)
    log.change("new")
    assert log.prune(HOUR) == 8
    # Deleted three at a time, with each batch of rows.
    assert log.select("number, kind", table="audit_checkpoint") == [(9, "prune"), (10, "prune"), (11, "prune")]
    log.checkpoint()
    assert log.verify() == (1, 4, None)


def test_a_chain_that_continues_after_it_was_pruned_verifies(log: AuditLog, clock: FakeClock) -> None:
    for _ in range(3):
        log.change("a", "b")
        log.record("c")
        log.checkpoint()
        log.prune()
        assert log.finding is None
    log.change("d")
    assert log.finding is None


def test_a_chain_is_deleted_up_to_its_first_newer_row(log: AuditLog, clock: FakeClock) -> None:
    """The clock was wrong for a while."""
    log.change("a")
    clock.advance(HOUR / 2)
    log.change("b")
    clock.advance(-HOUR / 2)
    log.change("c")
    log.restart()
    log.change("d", "e")
    log.checkpoint()
    clock.advance(HOUR / 4)
    assert log.prune() == 2
    assert actions(log) == ["b", "c", "e"]
    assert log.finding is None


def test_newer_rows_before_the_old_ones_do_not_stop_the_deletion(log: AuditLog, clock: FakeClock) -> None:
    """The clock of another node was wrong."""
    clock.advance(DAY)
    log.change("a", "b", "c", "d")
    clock.advance(-DAY)
    log.restart()
    log.change("e", "f")
    log.checkpoint()
    assert log.prune() == 1
    assert actions(log) == ["a", "b", "c", "d", "f"]
    assert log.finding is None


def test_writers_that_have_ended_are_forgotten(log: AuditLog, clock: FakeClock) -> None:
    for _ in range(6):
        log.restart()
        log.change("a", "b")
        log.checkpoint()
        clock.advance(DAY)
        log.prune(HOUR)
        assert log.finding is None
    assert len(boundaries(log)) <= 3


def test_a_writer_with_rows_left_is_never_forgotten(log: AuditLog, clock: FakeClock) -> None:
    """Its chain would begin in the middle."""
    log.change("a", "b")
    clock.advance(HOUR / 2)
    log.change("c")
    log.checkpoint()
    log.prune(HOUR / 4)
    assert actions(log) == ["c"]
    for _ in range(4):
        # The rows of others are old, and "c" is the newest one.
        clock.advance(DAY)
        assert log.prune(HOUR) == 0
        assert log.finding is None
    log.restart()
    for _ in range(4):
        log.change("d")
        clock.advance(DAY)
        log.prune(HOUR)
        assert log.finding is None


def test_a_writer_with_a_gap_keeps_its_rows(log: AuditLog, clock: FakeClock) -> None:
    log.change("a", "b", "c", "d")
    log.restart()
    log.change("e", "f")
    log.execute("DELETE FROM audit_event WHERE action = 'b'")
    clock.advance(DAY)
    assert log.prune() == 2
    assert actions(log) == ["c", "d", "f"]
    assert log.finding is not None


def test_an_earlier_limit_afterwards_deletes_nothing(log: AuditLog, clock: FakeClock) -> None:
    log.change("a", "b")
    log.checkpoint()
    log.change("c")
    assert log.prune() == 2
    assert log.prune(DAY) == 0
    assert log.finding is None


def test_an_interrupted_deletion_leaves_a_log_that_verifies(
    log: AuditLog, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        log.change("a", "b")
        log.record("c")
    log.checkpoint()
    lock, calls = pruning.lock_checkpoints, []

    def fail_later(connection: Any) -> None:
        calls.append(connection)
        if len(calls) == 3:
            raise KeyboardInterrupt
        lock(connection)

    monkeypatch.setattr(pruning, "lock_checkpoints", fail_later)
    with pytest.raises(KeyboardInterrupt):
        log.prune()
    assert len(actions(log)) == 6
    assert log.finding is None
    assert log.prune() == 5
    assert log.finding is None


@pytest.mark.parametrize("events", ["abcd", "abcdefgh"], ids=["one batch", "more batches"])
def test_of_two_processes_one_prunes(log: AuditLog, monkeypatch: pytest.MonkeyPatch, events: str) -> None:
    log.change(*events)
    last_checkpoint, kinds = pruning.last_checkpoint, []

    def another_came_first(connection: Any, tables: Any, kind: str | None = None) -> Any:
        kinds.append(kind)
        if kinds.count("prune") == 2:
            # In the transaction that deletes.
            pruned = pruning.Pruned(before=1)._asdict()
            append_checkpoint(connection, tables, log.keys, None, log.clock(), "prune", pruned)
        return last_checkpoint(connection, tables, kind)

    monkeypatch.setattr(pruning, "last_checkpoint", another_came_first)
    assert log.prune() == 0
    assert actions(log) == list(events)


@pytest.mark.threat("T-149")
@pytest.mark.parametrize(
    "change",
    [
        """UPDATE audit_checkpoint SET content = replace(content, '"before":', '"before": ') WHERE number = 2""",
        "UPDATE audit_checkpoint SET content = '{}' WHERE number = 2",
        "UPDATE audit_checkpoint SET content = '' WHERE number = 2",
        "UPDATE audit_checkpoint SET kid = 'unknown' WHERE number = 2",
        "DELETE FROM audit_checkpoint WHERE number = 1",
    ],
)
def test_a_forged_boundary_is_not_carried_over(log: AuditLog, clock: FakeClock, change: str) -> None:
    """It would become authentic."""
    log.change("a", "b", "c")
    log.checkpoint()
    assert log.prune() == 2
    log.change("d", "e")
    clock.advance(60)
    log.execute(change)
    with pytest.raises(PruningRefused, match="Checkpoint 2 of the audit log"):
        log.prune()
    assert actions(log) == ["c", "d", "e"]


def test_a_checkpoint_is_not_deleted_with_rows_of_its_time(log: AuditLog, clock: FakeClock) -> None:
    """The clock of the node that wrote it may be behind."""
    log.change("a", "b")
    log.checkpoint()
    clock.advance(DAY / 2)
    log.change("c")
    assert log.prune() == 2
    assert log.select("number", table="audit_checkpoint") == [(1,), (2,)]
    assert log.finding is None


@pytest.mark.threat("T-149")
@pytest.mark.parametrize("columns", [("id", *LINKED), LINKED], ids=["its own id", "a new id"])
def test_a_chain_that_was_pruned_cannot_be_inserted_again(
    log: AuditLog, clock: FakeClock, columns: Sequence[str]
) -> None:
    """Source: issue 13. A chain of one row proves nothing of when it was inserted."""
    log.change("a")
    log.restart()
    log.change("pruned")
    log.checkpoint()
    log.execute("CREATE TABLE kept AS SELECT * FROM audit_event WHERE action = 'pruned'")
    for _ in range(5):
        log.restart()
        clock.advance(DAY)
        log.change("b")
        log.checkpoint()
        log.prune(DAY / 2)
    assert log.finding is None
    names = ", ".join(columns)
    log.execute(f"INSERT INTO audit_event ({names}) SELECT {names} FROM kept")
    finding = log.finding
    assert finding is not None
    assert finding.startswith("Event 1 of writer w_")
    assert "is of a time that was pruned: it was inserted again" in finding
    # The next deletion includes it.
    clock.advance(DAY)
    log.change("c")
    log.prune(DAY / 2)
    assert "pruned" not in actions(log)
    assert log.finding is None


def test_an_old_newest_event_is_not_of_a_time_that_was_pruned(log: AuditLog, clock: FakeClock) -> None:
    log.change("a")
    log.restart()
    log.change("newest")
    clock.advance(4 * DAY)
    assert log.prune() == 1
    assert log.finding is None


@pytest.mark.threat("T-149")
@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (f"UPDATE audit_event SET time = time - {DAY * 1000} WHERE action = 'b'", "Event 1 of writer"),
        (f"UPDATE audit_event SET kid = 'x', time = time - {DAY * 1000} WHERE action = 'b'", "Event 1 of writer"),
        ("UPDATE audit_checkpoint SET time = 0", "Checkpoint 1 of the audit log"),
        ("UPDATE audit_checkpoint SET kid = 'x', time = 0", "Checkpoint 1 of the audit log"),
    ],
)
def test_no_altered_time_lets_pruning_delete_the_evidence(
    log: AuditLog, clock: FakeClock, change: str, refused: str
) -> None:
    """The boundary would make the deletion authentic."""
    log.change("a")
    clock.advance(DAY)
    log.change("b")
    log.restart()
    log.change("c", "d")
    log.checkpoint()
    log.execute(change)
    with pytest.raises(PruningRefused, match=refused):
        log.prune(HOUR)
    assert {"b", "c", "d"} <= set(actions(log))
    assert log.finding is not None
