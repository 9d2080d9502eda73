"""Audit logs of tests: what writes to them, what tampers with them, and what verification says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text

from gatehouse.shared.service.audit.checkpoints import Checkpoint, write_checkpoint
from gatehouse.shared.service.audit.events import AuditEvent, AuditTables
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.audit.pruning import prune_audit
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.audit.verification import Verification, verify_audit
from gatehouse.shared.service.audit.writer import AuditWriter
from gatehouse.shared.service.database import SNAPSHOT, Database, create_file, new_metadata
from support.clock import FakeClock

KEYS = AuditKeys({"audit_test": bytes(range(32))})

METADATA = new_metadata()
TABLES = AuditTables.declare(METADATA)


def audit_keys() -> AuditKeys:
    """Return the keys. Pass this function to `AuditRows`."""
    return KEYS


def allowed(action: str, **members: Any) -> AuditEvent:
    """Return an event with any text as its action."""
    return AuditEvent(action, "allowed", **members)  # type: ignore[arg-type]


def verification(engine: Engine, tables: AuditTables, keys: AuditKeys = KEYS, **options: Any) -> Verification:
    """Verify an audit log."""
    with engine.execution_options(**SNAPSHOT).connect() as connection:
        return verify_audit(connection, tables, keys, **options)


class AuditLog:
    """An audit log, and a process that writes to it."""

    def __init__(self, url: URL, clock: FakeClock, keys: AuditKeys = KEYS) -> None:
        self.database = Database(url, pool_size=5)
        self.engine = self.database.engine
        self.clock = clock
        self.keys = keys
        self._secrets = {"audit_test": bytes(range(32))}
        self._expiries: dict[str, int] = {}
        self.restart()

    def restart(self) -> None:
        """Continue as another process."""
        self.rows = AuditRows(TABLES.events, lambda: self.keys, self.clock)
        self.writer = AuditWriter(self.engine, self.rows)

    def rotate_keys(self, grace_period: float = 60) -> AuditKeys:
        """Rotate the key and record that, as `audit key rotate` does. Return the keys of before."""
        old = self.keys
        self._expiries[old.kid] = int(self.clock() + grace_period)
        self._secrets[f"audit_test_{len(self._secrets)}"] = bytes([len(self._secrets)]) * 32
        self.keys = AuditKeys(self._secrets, self._expiries)
        self.change("audit_key.rotate")
        return old

    def record(self, *actions: str) -> None:
        """Record events in batches of one."""
        for action in actions:
            self.writer.commit_and_wait(allowed(action, actor="agent_1", detail={"b": 1, "a": ["é", None]}))
        self.clock.advance(0.125)

    def change(self, *actions: str) -> None:
        """Record events in one transaction."""
        with self.database.write() as session:
            self.rows.record(session, *(allowed(action, reason="because") for action in actions))
        self.clock.advance(0.125)

    def checkpoint(self) -> Checkpoint | None:
        """Write the next checkpoint, a minute later."""
        self.clock.advance(60)
        return write_checkpoint(self.engine, TABLES, self.keys, self.clock())

    def prune(self, age: float = 0) -> int:
        """Prune the events that are older than this number of seconds, a minute later."""
        self.clock.advance(60)
        return prune_audit(self.engine, TABLES, self.keys, before=self.clock() - age, clock=self.clock)

    def verify(self, **options: Any) -> Verification:
        """Verify the log with the keys of the process."""
        return verification(self.engine, TABLES, self.keys, **options)

    @property
    def finding(self) -> str | None:
        """What verification finds."""
        return self.verify().finding

    def execute(self, statement: str, **parameters: Any) -> None:
        """Execute a statement as someone who can write to the database."""
        with self.engine.begin() as connection:
            connection.execute(text(statement), parameters)

    def select(self, columns: str, condition: str = "1 = 1", table: str = "audit_event") -> list[Any]:
        """Return rows, the oldest first."""
        order = "id" if table == "audit_event" else "number"
        with self.engine.begin() as connection:
            return list(connection.execute(text(f"SELECT {columns} FROM {table} WHERE {condition} ORDER BY {order}")))

    def writers(self) -> list[str]:
        """Return the writer of each row, without the part that all have."""
        return [writer.partition(".")[2] for (writer,) in self.select("writer")]

    def hide_table(self) -> None:
        """Begin an outage that only the audit log notices."""
        self.execute("ALTER TABLE audit_event RENAME TO elsewhere")

    def restore_table(self) -> None:
        """End it."""
        self.execute("ALTER TABLE elsewhere RENAME TO audit_event")

    @contextmanager
    def lost_answers(self) -> Iterator[None]:
        """Lose the answer to every COMMIT of the block."""
        commit = self.engine.dialect.do_commit

        def lose(connection: Any) -> None:
            commit(connection)
            raise self.engine.dialect.loaded_dbapi.OperationalError("the connection was lost")  # type: ignore[attr-defined]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.engine.dialect, "do_commit", lose)
            yield

    def close(self) -> None:
        """Close the database."""
        self.writer.close()
        self.database.close()


@contextmanager
def audit_log(url: URL, clock: FakeClock) -> Iterator[AuditLog]:
    """Create the tables in an empty database, and open the log."""
    create_file(url)
    log = AuditLog(url, clock)
    METADATA.create_all(log.engine)
    try:
        yield log
    finally:
        log.close()


def alter(log: AuditLog, table: str, row: str, column: str) -> Callable[[], None]:
    """Alter a column of a row, and return what undoes it."""
    [(before,)] = log.select(f"CAST({column} AS TEXT)" if column == "detail" else column, row, table)
    after = (
        before + 1_000_000 if isinstance(before, int) else before + " " if column == "detail" else f"{before}0"[-64:]
    )
    change = f"UPDATE {table} SET {column} = :value WHERE {row}"
    if column == "detail" and log.engine.dialect.name == "postgresql":
        change = change.replace(":value", "CAST(:value AS json)")
    # By its id, because the condition may no longer find it.
    identity = "id" if table == "audit_event" else "number"
    [(key,)] = log.select(identity, row, table)
    log.execute(change, value=after)
    undo = change.replace(f"WHERE {row}", f"WHERE {identity} = {key + 1_000_000 if column == identity else key}")
    return lambda: log.execute(undo, value=before)
