"""The commands that verify and prune the audit log, and rotate its key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, update
from support.audit_commands import TABLE, Log, audit_log
from support.clock import FakeClock

from gatehouse.shared.service.audit.checkpoints import Checkpoint
from gatehouse.shared.service.audit.keys import AuditKeys, create_audit_keys

both_databases = pytest.mark.both_databases

DAY = 86400


@pytest.fixture
def log(empty_database: URL, clock: FakeClock, tmp_path: Path) -> Iterator[Log]:
    with audit_log(empty_database, clock, tmp_path) as log:
        yield log


def line_of(checkpoint: Checkpoint, **changes: Any) -> str:
    """Return the log line of a checkpoint."""
    members = {"checkpoint": checkpoint.number, "kid": checkpoint.kid, "link": checkpoint.link}
    return json.dumps({"event": "audit checkpoint", "level": "info", **members, **changes}) + "\n"


@both_databases
def test_an_unaltered_log_is_verified(log: Log) -> None:
    for _ in range(3):
        log.add("token.issue")
    log.add_checkpoint()
    assert log.json("verify") == {"events": 3, "checkpoints": 1, "finding": None}
    assert "finding      -" in log.run("verify").stdout


@both_databases
def test_an_altered_event_is_named_with_exit_code_1(log: Log) -> None:
    for actor in ("agent_1", "agent_2"):
        log.add("token.issue", actor=actor)
    with log.engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == 2).values(actor="agent_3"))
    verified = log.json("verify", code=1)
    assert "(id 2, 2027-01-15T08:00:00.000Z) was altered." in verified["finding"]


def test_checkpoints_kept_elsewhere_show_that_newer_ones_were_cut_off(log: Log, tmp_path: Path) -> None:
    kept = tmp_path / "server.log"
    log.add("token.issue")
    first = log.add_checkpoint()
    log.clock.advance(60)
    log.add("token.issue")
    second = log.add_checkpoint()
    other = "not JSON\n" + json.dumps({"event": "audit checkpoint of another kind"}) + "\n[1]\n"
    kept.write_text(other + line_of(first) + line_of(second, kid="audit_other") + "audit checkpoint 1\n")
    assert log.json("verify", "--checkpoint", str(kept))["kept_elsewhere"] == 1
    kept.write_text(line_of(first) + line_of(second))
    assert log.json("verify", "--checkpoint", str(kept))["kept_elsewhere"] == 2
    with log.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM audit_event WHERE id = 2")
        connection.exec_driver_sql("DELETE FROM audit_checkpoint WHERE number = 2")
    assert log.json("verify")["finding"] is None
    finding = log.json("verify", "--checkpoint", str(kept), code=1)["finding"]
    assert finding.startswith("Checkpoint 2, which was kept elsewhere, is missing")
    # The server goes on, and writes the number again.
    log.clock.advance(60)
    log.add("token.issue")
    kept.write_text(kept.read_text() + line_of(log.add_checkpoint()))
    finding = log.json("verify", "--checkpoint", str(kept), code=1)["finding"]
    assert finding.startswith("Checkpoint 2 was kept elsewhere in two versions.")


@pytest.mark.parametrize(
    "line",
    ["", "audit checkpoint\n", json.dumps(["audit checkpoint"]), json.dumps({"event": "audit checkpoint"})],
    ids=["empty", "for people", "a list", "without members"],
)
def test_a_file_without_a_checkpoint_is_refused(log: Log, tmp_path: Path, line: str) -> None:
    (tmp_path / "server.log").write_text(line)
    assert "server.log has no checkpoint of this server." in log.refusal(
        "verify", "--checkpoint", f"{tmp_path}/server.log"
    )
    assert "No such file" in log.refusal("verify", "--checkpoint", f"{tmp_path}/none.log", code=2)


def test_checkpoints_can_come_from_standard_input(log: Log) -> None:
    log.add("token.issue")
    result = log.run("verify", "--checkpoint", "-", standard_input=line_of(log.add_checkpoint()))
    assert "kept_elsewhere  1" in result.stdout


@both_databases
def test_old_events_are_pruned_and_the_rest_verified(log: Log) -> None:
    for action in ("old", "older", "new"):
        log.add(action)
        log.clock.advance(DAY)
    pruned = log.json("prune", "--older-than", "36h", "--yes")
    assert pruned == {"before": "2027-01-16T20:00:00Z", "deleted": 2}
    events = log.json()
    assert [event["action"] for event in events] == ["new", "audit.prune"]
    assert (events[1]["actor"], events[1]["object"]) == ("admin:tester", "events before 2027-01-16T20:00:00Z")
    assert events[1]["detail"] == {"events": 2}
    assert log.json("verify")["finding"] is None


def test_a_prune_without_consent_or_without_old_events_changes_nothing(log: Log) -> None:
    log.add("old")
    log.clock.advance(DAY)
    assert log.json("prune", "--older-than", "2d") == {"before": "2027-01-14T08:00:00Z", "deleted": 0}
    assert "Repeat the command with --yes." in log.refusal("prune", "--older-than", "1h")
    refused = log.run("prune", "--older-than", "1h", standard_input="n\n")
    assert "Delete 1 events before 2027-01-16T07:00:00Z?" in refused.stderr
    assert "Nothing was changed." in refused.stderr
    assert [event["action"] for event in log.json()] == ["old"]
    assert "write an age such as 12h or 400d" in log.refusal("prune", "--older-than", "2026-01-01", code=2)


def test_a_forged_boundary_refuses_a_prune(log: Log) -> None:
    log.add("old")
    log.add_checkpoint()
    log.clock.advance(2 * DAY)
    log.add("new")
    log.json("prune", "--older-than", "36h", "--yes")
    with log.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit_checkpoint SET kid = 'unknown' WHERE kind = 'prune'")
    log.clock.advance(2 * DAY)
    refusal = log.refusal("prune", "--older-than", "36h", "--yes")
    assert "cannot be verified with the audit keys, so nothing is pruned" in refusal


def test_an_id_is_not_assigned_again_after_a_prune(log: Log) -> None:
    """Otherwise a collector would take the next events for those that it has."""
    log.add("old")
    log.clock.advance(DAY)
    log.json("prune", "--older-than", "0s", "--yes")
    assert [event["id"] for event in log.lines("export")] == [2]


@both_databases
def test_a_new_key_is_used_and_older_events_stay_verifiable(log: Log) -> None:
    log.add("before")
    old = AuditKeys.read(log.keys).kid
    rotated = log.run("key", "rotate", "--output", "json")
    kid = json.loads(rotated.stdout)["kid"]
    assert "Replace every copy of the file before 2027-01-15T09:00:00Z" in rotated.stderr
    assert kid == AuditKeys.read(log.keys).kid != old
    with log.engine.connect() as connection:
        rows = connection.execute(TABLE.select().order_by(TABLE.c.id)).all()
    assert [(row.action, row.kid) for row in rows] == [("before", old), ("audit_key.rotate", kid)]
    assert (rows[1].object, rows[1].detail) == (kid, {"old_key_expires_at": "2027-01-15T09:00:00Z"})
    # A running server continues with the key that it has read, until it reads the file again.
    log.add("after")
    log.clock.advance(DAY)
    log.add_checkpoint()
    assert log.json("verify")["finding"] is None


@pytest.mark.parametrize("period", ["0s", "59s", "31d", "soon"])
def test_a_grace_period_out_of_bounds_is_refused(log: Log, period: str) -> None:
    refusal = log.refusal("key", "rotate", "--grace-period", period, code=2)
    assert "write a time from 1m to 30d, such as 15m or 12h" in refusal


def test_with_other_keys_the_key_of_the_events_is_named(log: Log) -> None:
    log.add("event")
    log.keys.unlink()
    create_audit_keys(log.keys)
    assert "which is not in the audit key file" in log.json("verify", code=1)["finding"]
