"""The thread that writes checkpoints, prunes, and notices what vanished."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL
from support.audit import TABLES, AuditLog, audit_keys, audit_log
from support.clock import FakeClock
from support.logs import logging_put_back
from support.waiting import wait_until

from gatehouse.shared.service.audit.checkpoints import append_checkpoint, last_checkpoint
from gatehouse.shared.service.audit.keys import AuditKeyFile, create_audit_keys, rotate_audit_keys
from gatehouse.shared.service.audit.pruning import Pruned
from gatehouse.shared.service.audit.upkeep import AuditUpkeep
from gatehouse.shared.service.logs import configure_logs

pytestmark = pytest.mark.both_databases

DAY = 86400


@pytest.fixture(autouse=True)
def only_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Capture what an operator should act on, whichever level the logging of an earlier test has left."""
    caplog.set_level(logging.WARNING)


@pytest.fixture
def log(empty_database: URL, clock: FakeClock) -> Iterator[AuditLog]:
    with audit_log(empty_database, clock) as log:
        yield log


def upkeep_of(log: AuditLog, **options: Any) -> AuditUpkeep:
    return AuditUpkeep(log.engine, TABLES, audit_keys, log.clock, **options)


def heads(log: AuditLog) -> list[list[int]]:
    """Return the sequences in each checkpoint."""
    contents = log.select("content", "kind = 'heads'", "audit_checkpoint")
    return [[head[0] for head in json.loads(content)["heads"].values()] for (content,) in contents]


def numbers(log: AuditLog) -> list[int]:
    return [number for (number,) in log.select("number", table="audit_checkpoint")]


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


# Checkpoints that stop


@pytest.mark.threat("T-149")
def test_events_without_a_checkpoint_are_logged_once(
    log: AuditLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Source: review of issue 13. With low ids, events stay out of every checkpoint, and can be removed unseen."""
    reported: list[float] = []
    upkeep = upkeep_of(log, report=reported.append)
    log.change("a")
    for _ in range(3):
        upkeep.run_once()
        assert reported[-1] == clock()
        clock.advance(600)
    log.change("b")
    [(time,)] = log.select("time", "action = 'b'")
    log.execute("UPDATE audit_event SET id = -id WHERE action = 'b'")
    for _ in range(3):
        assert caplog.text == ""
        clock.advance(200)
        upkeep.run_once()
        assert reported[-1] == time / 1000
    upkeep.run_once()
    assert "no checkpoint lists the events of the audit log since 2027-01-15T08:30:00Z" in caplog.text
    assert len(caplog.records) == 1
    log.change("c")
    upkeep.run_once()
    assert reported[-1] == clock()


def test_an_attempt_that_does_not_end_is_logged(log: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    def wait_for_the_line() -> Any:
        wait_until(lambda: "to prune has not ended for 0 s" in caplog.text)
        return audit_keys()

    log.change("a")
    upkeep_of(log).run_once()
    assert caplog.text == ""
    AuditUpkeep(log.engine, TABLES, wait_for_the_line, log.clock, patience=0.001).run_once()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "to prune has not ended for 0 s" in caplog.text


# A process remembers what it saw


@pytest.fixture
def watched(log: AuditLog, clock: FakeClock) -> AuditUpkeep:
    """The upkeep of a process that saw two checkpoints."""
    upkeep = upkeep_of(log)
    for action in ("a", "b"):
        log.change(action)
        upkeep.run_once()
        clock.advance(60)
    assert numbers(log) == [1, 2]
    return upkeep


@pytest.mark.threat("T-149")
@pytest.mark.parametrize("number", [1, 2], ids=["all", "the last one"])
def test_checkpoints_that_were_cut_off_are_logged_once(
    log: AuditLog, watched: AuditUpkeep, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Source: issue 13. Without their rows, verification alone finds nothing."""
    watched.run_once()
    assert caplog.text == ""
    log.execute("DELETE FROM audit_checkpoint WHERE number >= :number", number=number)
    log.execute("DELETE FROM audit_event WHERE id >= :number", number=number)
    assert log.finding is None
    watched.run_once()
    watched.run_once()
    assert "checkpoint 2 of the audit log, of 2027-01-15T08:01:00Z, was removed or replaced" in caplog.text
    assert caplog.text.count("removed or replaced") == 1


@pytest.mark.threat("T-149")
def test_a_checkpoint_that_was_written_again_is_logged(
    log: AuditLog, watched: AuditUpkeep, caplog: pytest.LogCaptureFixture
) -> None:
    log.execute("DELETE FROM audit_checkpoint WHERE number = 2")
    for action in ("c", "d"):
        log.change(action)
        log.checkpoint()
    assert numbers(log) == [1, 2, 3]
    watched.run_once()
    assert "checkpoint 2 of the audit log" in caplog.text


@pytest.mark.threat("T-149")
@pytest.mark.parametrize("forged", [False, True], ids=["no boundary", "a forged boundary"])
def test_a_checkpoint_that_only_seems_pruned_is_logged(
    log: AuditLog, watched: AuditUpkeep, caplog: pytest.LogCaptureFixture, forged: bool
) -> None:
    log.change("c")
    assert log.checkpoint() is not None
    log.execute("DELETE FROM audit_checkpoint WHERE number < 3")
    if forged:
        log.execute("UPDATE audit_checkpoint SET kind = 'prune', content = '{}' WHERE number = 3")
    watched.run_once()
    assert "checkpoint 2 of the audit log" in caplog.text


@pytest.mark.threat("T-149")
def test_a_log_rewritten_with_a_retired_key_is_logged(
    log: AuditLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Source: a deletion that is claimed with the key of before a rotation, and a time of before its expiry."""
    upkeep = AuditUpkeep(log.engine, TABLES, lambda: log.keys, clock)
    log.change("a")
    upkeep.run_once()
    old, before = log.rotate_keys(), clock()
    clock.advance(3600)
    upkeep.run_once()
    upkeep.run_once()
    assert caplog.text == ""
    with log.engine.begin() as connection:
        last = last_checkpoint(connection, TABLES)
        assert last is not None
        pruned = Pruned(int(clock() * 1000), checkpoint=(last.number, last.link))
        append_checkpoint(connection, TABLES, old, last, before, "prune", pruned._asdict())
    log.execute("DELETE FROM audit_checkpoint WHERE kind <> 'prune'")
    log.execute("DELETE FROM audit_event")
    upkeep.run_once()
    assert "checkpoint 2 of the audit log" in caplog.text


def test_pruned_checkpoints_are_not_missed(
    log: AuditLog, watched: AuditUpkeep, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.advance(3 * DAY)
    log.change("c")
    log.prune()
    assert numbers(log) == [3]
    watched.run_once()
    assert caplog.text == ""


def test_rotated_keys_are_used_without_a_restart(
    log: AuditLog, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.json"
    create_audit_keys(path)
    file = AuditKeyFile(path)
    log.keys = file.current()
    upkeep = AuditUpkeep(log.engine, TABLES, file.reload, clock)
    log.change("a")
    upkeep.run_once()
    kid = rotate_audit_keys(path, int(clock()) + 60)
    upkeep.run_once()
    assert file.current().kid == kid
    log.keys = file.current()
    path.chmod(0o644)
    path.touch()
    upkeep.run_once()
    assert "will be retried: The audit key file" in caplog.text
    path.chmod(0o600)
    clock.advance(60)
    log.change("b")
    upkeep.run_once()
    assert [used for (used,) in log.select("kid", table="audit_checkpoint")] == [log.select("kid")[0][0], kid]
    assert log.finding is None
