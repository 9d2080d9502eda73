"""The chains of audit rows: numbered and linked at the commit, and continued only after a confirmed one."""

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from sqlalchemy import URL
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from support.audit import KEYS, AuditLog, allowed, audit_keys, audit_log
from support.clock import FakeClock

from gatehouse.shared.service.audit.chain import MAX_GAP, AuditRow, Chain, Chains, event_link
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.audit.writer import AuditUnavailable
from gatehouse.shared.service.settings import InvalidSettings

ROW = AuditRow(1_800_000_000_000, None, "agent_1", None, "token.issue", None, "allowed", None, "{}")


@pytest.fixture
def log(empty_database: URL, clock: FakeClock) -> Iterator[AuditLog]:
    with audit_log(empty_database, clock) as log:
        yield log


def test_a_link_authenticates_the_row_and_the_one_before_it() -> None:
    chains = Chains(audit_keys)
    [first, second], chain = chains.extend(chains.new(), [ROW, ROW._replace(action="token.revoke")])
    link, writer, sequence, kid, *values = second
    assert (sequence, kid, AuditRow(*values).action) == (2, "audit_test", "token.revoke")
    assert link == event_link(KEYS, first[0], second[1:]) != event_link(KEYS, "", second[1:])
    assert chain == Chain(writer, 2, link, ROW.time, "audit_test")


def test_a_writer_is_never_used_again() -> None:
    writers = [chains.new().writer for chains in (Chains(audit_keys), Chains(audit_keys)) for _ in range(3)]
    assert len(set(writers)) == 6


@pytest.mark.parametrize("gap", [MAX_GAP + 1, -MAX_GAP - 1])
def test_rows_far_apart_in_time_are_in_different_chains(gap: int) -> None:
    """Pruning finds the next row of a chain by its time."""
    chains = Chains(audit_keys)
    near, far = ROW._replace(time=ROW.time + MAX_GAP), ROW._replace(time=ROW.time + MAX_GAP + gap)
    rows, chain = chains.extend(chains.new(), [ROW, near, far])
    assert [row[2] for row in rows] == [1, 2, 1]
    assert rows[1][1] != rows[2][1] == chain.writer


def test_no_keys_are_read_without_a_row() -> None:
    def missing() -> None:
        raise InvalidSettings

    chains = Chains(missing)  # type: ignore[arg-type]
    chain = chains.new()
    with pytest.raises(InvalidSettings):
        chains.extend(chain, [ROW])


def test_with_another_key_another_chain_begins() -> None:
    """No row under a new key may follow one under a retired key, and none under a retired key one under a new key."""
    keys = AuditKeys({"one": bytes(32)})
    chains = Chains(lambda: keys)
    _, chain = chains.extend(chains.new(), [ROW])
    keys = AuditKeys({"one": bytes(32), "two": bytes(range(32))}, {"one": 1})
    [row], further = chains.extend(chain, [ROW])
    assert (row[2], row[3]) == (1, "two")
    assert further.writer != chain.writer


@pytest.mark.both_databases
def test_transactions_continue_one_chain_after_each_other(log: AuditLog) -> None:
    with log.database.write() as session:
        for action in ("one", "two"):
            log.rows.record(session, allowed(action))
    with suppress(RuntimeError), log.database.write() as session:
        log.rows.record(session, allowed("rolled.back"))
        raise RuntimeError
    log.hide_table()
    with pytest.raises(Exception, match=r"no such table|UndefinedTable"):
        log.change("refused")
    log.restore_table()
    log.change("three")
    assert log.select("action, sequence") == [("one", 1), ("two", 2), ("three", 3)]
    assert len(set(log.writers())) == 1


@pytest.mark.only_on("postgresql")
def test_simultaneous_transactions_have_chains_of_their_own(log: AuditLog) -> None:
    with log.database.write() as session, log.rows.inserted(session, [log.rows.row(allowed("one"))]):
        log.change("two")
    log.change("three", "four")
    assert log.select("action, sequence")[:2] == [("one", 1), ("two", 1)]
    assert len(set(log.writers())) == 2


@pytest.mark.both_databases
def test_a_chain_ends_where_the_outcome_of_a_commit_is_unknown(log: AuditLog) -> None:
    log.change("before")
    log.record("before")
    with log.lost_answers():
        with pytest.raises(OperationalError):
            log.change("unknown")
        with pytest.raises(AuditUnavailable):
            log.record("unknown")
    log.change("after")
    log.record("after")
    rows = log.select("writer, sequence, action")
    assert [(sequence, action) for _, sequence, action in rows] == [
        (1, "before"),
        (1, "before"),
        (2, "unknown"),
        (2, "unknown"),
        (1, "after"),
        (1, "after"),
    ]
    assert len({writer for writer, *_ in rows}) == 4


def test_a_session_that_would_lose_its_events_is_refused(log: AuditLog) -> None:
    with Session(log.engine) as session, pytest.raises(KeyError):
        log.rows.record(session, allowed("lost"))


@pytest.mark.both_databases
def test_many_threads_leave_whole_chains(log: AuditLog) -> None:
    def change() -> None:
        for number in range(10):
            log.change(str(number))

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.verify() == (40, 0, None)
    assert len(set(log.writers())) <= 4
