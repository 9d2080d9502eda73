"""The export of audit events: every one that matches, in order, in bounded memory."""

import csv
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL
from support.audit_commands import TABLE, Log, audit_log
from support.clock import FakeClock

from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.audit.export import MEMBERS, stream_events


@pytest.fixture
def log(empty_database: URL, clock: FakeClock, tmp_path: Path) -> Iterator[Log]:
    with audit_log(empty_database, clock, tmp_path) as log:
        yield log


@pytest.mark.both_databases
def test_an_event_is_exported_with_all_that_identifies_it(log: Log) -> None:
    log.clock.now = 1_800_000_000.123
    log.add(
        "tool.call",
        "refused",
        actor="agent_1",
        object="whoami",
        jti="jti-1",
        request_id="req_1",
        reason="expired",
        detail={"status": 401},
    )
    [event] = log.lines("export")
    assert tuple(event) == MEMBERS
    assert event.pop("writer").startswith("w_")
    assert event == {
        "time": "2027-01-15T08:00:00.123Z",
        "id": 1,
        "action": "tool.call",
        "outcome": "refused",
        "actor": "agent_1",
        "object": "whoami",
        "jti": "jti-1",
        "request_id": "req_1",
        "reason": "expired",
        "detail": {"status": 401},
        "sequence": 1,
    }


@pytest.mark.both_databases
def test_every_matching_event_is_exported_in_the_order_of_time(log: Log, clock: FakeClock) -> None:
    start = clock()
    for second in (2, 0, 1, 3):
        clock.now = start + second
        log.add("token.issue", actor=f"agent_{second}")
    assert [event["actor"] for event in log.lines("export")] == [f"agent_{second}" for second in range(4)]
    times = ("--since", iso_time(start + 1), "--until", iso_time(start + 3))
    assert [event["actor"] for event in log.lines("export", *times)] == ["agent_1", "agent_2"]
    assert [event["id"] for event in log.lines("export", "--client", "agent_3")] == [4]
    assert log.lines("export", "--jti", "nothing") == []


def test_an_unknown_action_is_refused(log: Log) -> None:
    assert "There is no action token.issued" in log.refusal("export", "--action", "token.issued")


@pytest.mark.threat("T-113")
def test_the_csv_export_has_a_header_and_no_formula(log: Log) -> None:
    log.add("tool.call", "refused", object="=cmd|' /C calc'!A0", reason="@SUM(1)", detail={"n": [1, "+2"]})
    lines = log.run("export", "--output", "csv").stdout.splitlines()
    header, cells = csv.reader(lines)
    assert tuple(header) == MEMBERS
    event = dict(zip(header, cells, strict=True))
    assert event["object"] == "'=cmd|' /C calc'!A0"
    assert event["reason"] == "'@SUM(1)"
    assert event["detail"] == '{"n": [1, "+2"]}'
    assert (event["actor"], event["sequence"]) == ("", "1")


def test_a_long_export_does_not_fill_the_memory(log: Log) -> None:
    with log.engine.begin() as connection:
        log.insert(connection, *[AuditEvent("a", "allowed", reason="r" * 1000)] * 2000)
    with log.engine.connect() as connection:
        rows = stream_events(connection, TABLE)
        next(rows)
        tracemalloc.start()
        try:
            assert sum(1 for _ in rows) == 1999
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2_500_000


def test_an_export_needs_no_keys(log: Log) -> None:
    """A host that only exports has none."""
    log.add("token.issue")
    log.keys.unlink()
    assert [event["action"] for event in log.lines("export")] == ["token.issue"]
