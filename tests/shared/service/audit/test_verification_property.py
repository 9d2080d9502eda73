"""Verification is silent whatever servers do in any order, and finds any one change after that."""

import tempfile
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError
from support.audit import AuditLog, allowed, alter, audit_log
from support.clock import FakeClock

from gatehouse.shared.service.audit.chain import AUTHENTICATED
from gatehouse.shared.service.database import parse_database_url

OPERATIONS = (
    "record",
    "change",
    "roll back",
    "lose an answer",
    "restart",
    "checkpoint",
    "hours pass",
    "prune",
    "rotate keys",
)


def operate(log: AuditLog, operation: str) -> None:
    if operation == "record":
        log.record("a", "b")
    elif operation == "change":
        log.change("c", "d")
    elif operation == "roll back":
        with suppress(RuntimeError), log.database.write() as session:
            log.rows.record(session, allowed("rolled.back"))
            raise RuntimeError
    elif operation == "lose an answer":
        with suppress(OperationalError), log.lost_answers():
            log.change("unknown")
    elif operation == "restart":
        log.writer.close()
        log.restart()
    elif operation == "checkpoint":
        log.checkpoint()
    elif operation == "hours pass":
        log.clock.advance(7000)
    elif operation == "rotate keys":
        log.rotate_keys()
    else:
        log.prune(3600)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(OPERATIONS), max_size=14), st.data())
def test_one_change_to_a_log_is_found_whatever_happened_before(operations: list[str], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clock = FakeClock()
        with audit_log(parse_database_url(f"sqlite:///{folder}/log.db"), clock) as log:
            for operation in operations:
                operate(log, operation)
                assert log.finding is None, operation
            # The newest row is never pruned, and may be older than what was.
            log.clock.advance(7000)
            since = int(clock() * 1000)
            log.record("e", "f")
            log.change("g", "h")
            log.checkpoint()
            assert log.finding is None
            change_something(log, since, data)
            assert log.finding is not None


def change_something(log: AuditLog, since: int, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        numbers = [number for (number,) in log.select("number", table="audit_checkpoint")]
        number = data.draw(st.sampled_from(numbers))
        column = data.draw(st.sampled_from(["time", "kid", "content", "link"]))
        alter(log, "audit_checkpoint", f"number = {number}", column)
        return
    ids = [id_ for (id_,) in log.select("id", f"time >= {since}")]
    row = f"id = {data.draw(st.sampled_from(ids))}"
    if data.draw(st.booleans()):
        log.execute(f"DELETE FROM audit_event WHERE {row}")
    else:
        alter(log, "audit_event", row, data.draw(st.sampled_from(["link", *AUTHENTICATED])))
