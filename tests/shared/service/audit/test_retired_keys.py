"""Retired audit keys: what was written under them verifies, and nothing can be added."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL
from support.audit import TABLES, AuditLog, allowed, audit_log
from support.clock import FakeClock

from gatehouse.shared.service.audit import pruning
from gatehouse.shared.service.audit.checkpoints import append_checkpoint, last_checkpoint
from gatehouse.shared.service.audit.keys import AuditKeys

pytestmark = pytest.mark.both_databases

HOUR = 3600
DAY = 24 * HOUR


@pytest.fixture
def log(empty_database: URL, clock: FakeClock) -> Iterator[AuditLog]:
    with audit_log(empty_database, clock) as log:
        yield log


@pytest.fixture
def rotated(log: AuditLog) -> AuditKeys:
    """The keys of before a rotation, whose grace period has passed."""
    log.change("change.1", "change.2")
    log.record("batch.1")
    log.checkpoint()
    log.clock.advance(HOUR)
    old = log.rotate_keys(grace_period=60)
    log.record("batch.2")
    assert log.checkpoint() is not None
    log.clock.advance(HOUR)
    assert log.finding is None
    return old


class Attacker:
    """Someone who can write to the database, and has the keys of before a rotation. Their clock shows any time."""

    def __init__(self, log: AuditLog, keys: AuditKeys, ago: float = 0) -> None:
        self._log = log
        self._clock = FakeClock(log.clock() - ago)
        self._keys = keys

    def add_event(self, keys: AuditKeys | None = None) -> None:
        other = AuditLog(self._log.database.url, self._clock, keys or self._keys)
        other.change("forged")
        other.close()

    def continue_chain(self, sequence: int) -> None:
        """Add a row to a chain of the server."""
        [end] = self._log.select("writer, sequence, link, time, kid", f"action = 'change.{sequence}'")
        other = AuditLog(self._log.database.url, self._clock, self._keys)
        chain = other.rows.chains.new()._replace(**end._mapping)
        event = other.rows.row(allowed("forged"))
        rows, _ = other.rows.chains.extend(chain, [event])
        with other.engine.begin() as connection:
            connection.exec_driver_sql(other.rows.driver_insert(connection.dialect), list(rows))
        other.close()

    def add_checkpoint(self) -> None:
        with self._log.engine.begin() as connection:
            previous = last_checkpoint(connection, TABLES)
            content = {"last": 5, "heads": {}}
            append_checkpoint(connection, TABLES, self._keys, previous, self._clock(), "heads", content)


def test_rotated_keys_verify_old_and_new_rows(log: AuditLog) -> None:
    for _ in range(3):
        log.change("a")
        log.record("b")
        log.checkpoint()
        log.rotate_keys()
        log.record("c")
        log.checkpoint()
        log.clock.advance(HOUR)
    assert len({kid for (kid,) in log.select("kid")}) == 4
    assert log.verify() == (12, 6, None)


@pytest.mark.threat("T-149")
@pytest.mark.parametrize("ago", [0, 1.9 * HOUR, 3 * HOUR], ids=["now", "in the grace period", "before the rotation"])
@pytest.mark.parametrize("listed", [False, True])
def test_no_event_is_added_under_a_retired_key(log: AuditLog, rotated: AuditKeys, ago: float, listed: bool) -> None:
    """Source: issue 13, an attacker with an old key; also if a later checkpoint of the server lists the event."""
    attacker = Attacker(log, rotated, ago)
    attacker.add_event(log.keys)
    log.checkpoint()
    assert log.finding is None, "an event under the current key verifies"
    attacker.add_event()
    if listed:
        assert log.checkpoint() is not None
    finding = log.finding
    assert finding is not None
    assert finding.startswith("Event 1 of writer w_")
    assert "was written after its key audit_test had expired (2027-01-15T09:02:00.000Z)" in finding


@pytest.mark.threat("T-149")
@pytest.mark.parametrize("sequence", [1, 2])
def test_no_chain_is_continued_under_a_retired_key(log: AuditLog, rotated: AuditKeys, sequence: int) -> None:
    """`change.2` is the end of a chain under the old key."""
    attacker = Attacker(log, rotated, 2 * HOUR)
    attacker.continue_chain(sequence)
    finding = log.finding
    assert finding is not None
    assert ("had expired" in finding) == (sequence == 2)


@pytest.mark.threat("T-149")
@pytest.mark.parametrize("ago", [0, 1.99 * HOUR])
def test_no_checkpoint_is_added_under_a_retired_key(log: AuditLog, rotated: AuditKeys, ago: float) -> None:
    Attacker(log, log.keys).add_checkpoint()
    assert log.finding is None, "a checkpoint under the current key verifies"
    Attacker(log, rotated, ago).add_checkpoint()
    finding = log.finding
    assert finding is not None
    assert finding.startswith("Checkpoint 4 (")
    assert "was written after its key audit_test had expired" in finding


def test_another_node_may_use_the_old_key_in_the_grace_period(log: AuditLog) -> None:
    log.change("a")
    log.checkpoint()
    old = log.rotate_keys(grace_period=HOUR)
    log.checkpoint()
    other = AuditLog(log.database.url, log.clock, old)
    other.change("late")
    assert log.finding is None
    log.checkpoint()
    other.change("later")
    log.clock.advance(HOUR)
    assert log.finding is None, "no checkpoint shows yet that the key has expired"
    log.change("b")
    log.checkpoint()
    assert log.finding is None
    other.change("too.late")
    finding = log.finding
    assert finding is not None
    assert "or a server did not read the new key in time" in finding
    other.close()


def test_the_expiry_of_a_key_has_a_checkpoint_without_an_event(log: AuditLog) -> None:
    """Until then, an event could be added under the old key."""
    log.change("a")
    log.rotate_keys(grace_period=HOUR)
    assert log.checkpoint() is not None
    assert log.checkpoint() is None
    log.clock.advance(HOUR)
    assert log.checkpoint() is not None
    assert log.checkpoint() is None
    assert log.finding is None


def test_a_prune_after_the_expiry_lists_no_events(log: AuditLog) -> None:
    """The next checkpoint does."""
    log.change("a", "b")
    log.clock.advance(3 * HOUR)
    old = log.rotate_keys(grace_period=HOUR)
    log.checkpoint()
    other = AuditLog(log.database.url, log.clock, old)
    other.change("in.the.grace.period")
    other.close()
    log.clock.advance(HOUR)
    assert log.prune(2 * HOUR) == 2
    assert log.checkpoint() is not None
    assert log.finding is None


def test_pruned_logs_verify_after_a_rotation(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "_BATCH", 2)
    log.change("a", "b")
    log.clock.advance(HOUR / 2)
    log.change("future")
    log.clock.advance(-HOUR / 2)
    log.change("kept")
    log.record("c", "d")
    log.checkpoint()
    log.rotate_keys()
    log.clock.advance(HOUR / 4)
    log.record("e")
    log.checkpoint()
    assert log.prune(60) == 5
    assert [action for (action,) in log.select("action")] == ["future", "kept", "e"]
    assert log.finding is None
    for _ in range(4):
        log.clock.advance(DAY)
        log.record("f")
        log.checkpoint()
        log.prune(HOUR)
        assert log.finding is None
    assert [action for (action,) in log.select("action")] == ["f"]


@pytest.mark.threat("T-149")
def test_a_retired_key_lets_pruning_delete_no_newer_event(log: AuditLog, rotated: AuditKeys) -> None:
    """Source: rows that are given an older time, so that the server deletes them and authenticates the deletion."""
    [old] = log.select("writer, sequence, kid, id", "action = 'batch.1'")
    log.execute("DELETE FROM audit_event WHERE action = 'batch.1'")
    attacker = AuditLog(log.database.url, FakeClock(log.clock() - 5 * HOUR), rotated)
    chain = attacker.rows.chains.new()._replace(writer=old.writer)
    rows, _ = attacker.rows.chains.extend(chain, [attacker.rows.row(allowed("forged"))])
    with log.engine.begin() as connection:
        connection.exec_driver_sql(attacker.rows.driver_insert(connection.dialect), list(rows))
    attacker.close()
    log.record("newest")
    assert log.prune(4 * HOUR) == 1
    finding = log.finding
    assert finding is not None
    assert finding.startswith(f"Event 1 of writer {old.writer} was pruned before it was due: checkpoint 1 lists it")
