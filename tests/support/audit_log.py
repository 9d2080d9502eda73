"""An audit log in a database of its own, and the `audit` commands on it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.testing import CliRunner, Result
from sqlalchemy import URL, Connection, Engine

from gatehouse.shared.service.audit import AuditAction, AuditEvent, AuditTables
from gatehouse.shared.service.audit_command import audit_group
from gatehouse.shared.service.audit_log import AuditLog
from gatehouse.shared.service.audit_rows import AuditRows
from gatehouse.shared.service.database import Database, new_metadata
from support.audit import audit_keys
from support.clock import FakeClock
from support.databases import engine_with_tables

METADATA = new_metadata()
TABLE = AuditTables.declare(METADATA).events


class Log:
    """An audit log. Its events have the time of a clock."""

    def __init__(self, engine: Engine, url: URL, clock: FakeClock, server: str) -> None:
        self.engine = engine
        self.url = url
        self.clock = clock
        self._rows = AuditRows(TABLE, audit_keys, clock)
        self._chain = self._rows.chains.new()
        self.commands = audit_group(AuditLog(server, TABLE, frozenset(AuditAction), self._open))

    @contextmanager
    def _open(self, _: click.Context, /, *, patient: bool = False) -> Iterator[Database]:
        with Database(self.url, patient=patient) as database:
            yield database

    def add(self, action: str, outcome: str = "allowed", **members: Any) -> None:
        """Record an event."""
        with self.engine.begin() as connection:
            self.insert(connection, AuditEvent(action, outcome, **members))

    def insert(self, connection: Connection, *events: AuditEvent) -> None:
        """Record events in an open transaction."""
        statement = self._rows.driver_insert(connection.dialect)
        linked, self._chain = self._rows.chains.extend(self._chain, [self._rows.row(event) for event in events])
        connection.exec_driver_sql(statement, linked)

    def run(self, *arguments: str) -> Result:
        """Run `audit` with arguments."""
        return CliRunner().invoke(self.commands, arguments)

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        """Run `audit` with arguments, and return the JSON lines that it prints."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    def refusal(self, *arguments: str, code: int = 1) -> str:
        """Run `audit` with arguments that it refuses, and return what it says."""
        result = self.run(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        return result.stderr


@contextmanager
def audit_log(url: URL, clock: FakeClock, server: str = "authserver") -> Iterator[Log]:
    """Create an audit log in an empty database."""
    with engine_with_tables(url, METADATA) as engine:
        yield Log(engine, url, clock, server)
