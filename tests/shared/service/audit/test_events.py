"""The search for audit events."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Engine
from support.audit import audit_keys
from support.clock import FakeClock
from support.databases import engine_with_tables

from gatehouse.shared.service.audit.events import AuditEvent, AuditTables, find_events
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.database import Database, new_metadata

pytestmark = pytest.mark.both_databases

METADATA = new_metadata()
TABLE = AuditTables.declare(METADATA).events


class Log:
    """An audit log."""

    def __init__(self, engine: Engine, clock: FakeClock) -> None:
        self._engine = engine
        self._database = Database(engine.url)
        self._rows = AuditRows(TABLE, audit_keys, clock)

    def add(self, action: str, **members: Any) -> None:
        with self._database.write() as session:
            self._rows.record(session, AuditEvent(action, "allowed", **members))

    def close(self) -> None:
        self._database.close()

    def actions(self, **filters: Any) -> list[str]:
        with self._engine.begin() as connection:
            return [row["action"] for row in find_events(connection, TABLE, **filters)]


@pytest.fixture
def log(empty_database: URL, clock: FakeClock) -> Iterator[Log]:
    with engine_with_tables(empty_database, METADATA) as engine:
        log = Log(engine, clock)
        yield log
        log.close()


def test_events_are_found_by_client_token_and_request(log: Log) -> None:
    log.add("a", actor="one", jti="j1", request_id="r1")
    log.add("b", actor="two", jti="j1", request_id="r2")
    log.add("c", actor="two", jti="j2", request_id="r3")
    assert log.actions(client="two") == ["b", "c"]
    assert log.actions(jti="j1") == ["a", "b"]
    assert log.actions(request_id="r3") == ["c"]
    assert log.actions(client="two", jti="j1") == ["b"]
    assert log.actions(client="' OR 1=1 --") == []


def test_a_client_is_found_as_actor_or_as_object_of_an_admin(log: Log) -> None:
    """Any client can name anything as the object of a call, and must not fill another client's events with it."""
    log.add("token.issue", actor="agent_1")
    log.add("token.issue", actor="claimed:agent_1")
    log.add("client.disable", actor="admin:root", object="agent_1")
    log.add("tool.call", actor="agent_2", object="agent_1")
    assert log.actions(client="agent_1") == ["token.issue", "token.issue", "client.disable"]


def test_the_newest_events_are_returned_in_order_of_time(log: Log, clock: FakeClock) -> None:
    for number in range(5):
        clock.advance(1)
        log.add(str(number))
    assert log.actions(limit=3) == ["2", "3", "4"]
