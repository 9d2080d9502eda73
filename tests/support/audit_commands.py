"""The `audit` commands, on an audit log in a database of its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result
from sqlalchemy import URL, Connection, Engine

from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit.checkpoints import Checkpoint, write_checkpoint
from gatehouse.shared.service.audit.command import audit_group
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.keys import AuditKeyFile, AuditKeys, create_audit_keys
from gatehouse.shared.service.audit.log import AuditLog, OpenLog
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.database import Database
from support.audit import METADATA, TABLES
from support.clock import FakeClock
from support.databases import engine_with_tables

TABLE = TABLES.events


class Log:
    """An audit log. Its events have the time of a clock."""

    def __init__(self, engine: Engine, url: URL, clock: FakeClock, server: str, keys: Path) -> None:
        self.engine = engine
        self.url = url
        self.clock = clock
        self.keys = keys
        create_audit_keys(keys)
        self._rows = AuditRows(TABLE, AuditKeyFile(keys).current, clock)
        self.commands = audit_group(AuditLog(server, TABLES, frozenset(AuditAction), self._open))

    @contextmanager
    def _open(self, _: click.Context, /, *, patient: bool = False) -> Iterator[OpenLog]:
        rows = AuditRows(TABLE, AuditKeyFile(self.keys).current, self.clock)
        with Database(self.url, patient=patient) as database:
            yield OpenLog(database, self.keys, Administrator(rows, self.clock, "tester"))

    def add(self, action: str, outcome: str = "allowed", **members: Any) -> None:
        """Record an event."""
        with self.engine.begin() as connection:
            self.insert(connection, AuditEvent(action, outcome, **members))

    def insert(self, connection: Connection, *events: AuditEvent) -> None:
        """Record events in an open transaction."""
        linked, _ = self._rows.chains.extend(self._rows.chains.new(), list(map(self._rows.row, events)))
        connection.exec_driver_sql(self._rows.driver_insert(connection.dialect), list(linked))

    def add_checkpoint(self) -> Checkpoint:
        """Write a checkpoint of all events."""
        written = write_checkpoint(self.engine, TABLES, AuditKeys.read(self.keys), self.clock(), interval=0)
        assert written is not None
        return written

    def run(self, *arguments: str, standard_input: str | None = None) -> Result:
        """Run `audit` with arguments."""
        return CliRunner().invoke(self.commands, arguments, input=standard_input)

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        """Run `audit` with arguments, and return the JSON lines that it prints."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Run `audit` with arguments, and return the JSON that it prints."""
        result = self.run(*arguments, "--output", "json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def refusal(self, *arguments: str, code: int = 1) -> str:
        """Run `audit` with arguments that it refuses, and return what it says."""
        result = self.run(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        return result.stderr


@contextmanager
def audit_log(url: URL, clock: FakeClock, folder: Path, server: str = "authserver") -> Iterator[Log]:
    """Create an audit log in an empty database, with its key file in a folder."""
    with engine_with_tables(url, METADATA) as engine:
        yield Log(engine, url, clock, server, folder / f"{server}-audit.json")
