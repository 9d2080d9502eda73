"""The heartbeat: a row that every server writes while nothing else is written, which proves that its database can.

Reading proves less: SQLite reads a database that is locked, full, read-only or deleted, and PostgreSQL one that is in
recovery.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import BigInteger, Column, Connection, MetaData, String, Table, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from gatehouse.shared.service.database import sqlite_path
from gatehouse.shared.service.failures import explain_database_failure

INTERVAL: Final = 5.0
"""Seconds between two heartbeats, or between a write of the process and the next heartbeat."""

RETRY: Final = 1.0
"""Seconds between two heartbeats while they fail."""

MAX_AGE: Final = 15.0
"""Seconds after the last successful write until a server is not ready. A write that hangs does not fail."""

CHECK_LIMIT: Final = 1.0
"""Seconds that `/readyz` waits for the database. Load balancers wait little longer."""

SERVER: Final = "server"
"""The row that all processes of all nodes write."""

_WRITE = text(
    "INSERT INTO heartbeat (name, time) VALUES (:name, :time) ON CONFLICT (name) DO UPDATE SET time = excluded.time"
)
_READ = text("SELECT time FROM heartbeat WHERE name = :name")

log = logging.getLogger(__name__)


def heartbeat_table(metadata: MetaData) -> Table:
    """Declare the table on a server's metadata."""
    return Table(
        "heartbeat",
        metadata,
        Column("name", String(16), primary_key=True),
        Column("time", BigInteger, nullable=False, comment="seconds since the epoch"),
    )


def write_heartbeat(connection: Connection, name: str, now: float) -> None:
    """Write a row in a transaction that the caller commits. `now` is seconds since the epoch. Raises SQLAlchemyError.

    On SQLite, a file that new connections could not write fails as well, although this one may still be able to.
    """
    connection.execute(_WRITE, {"name": name, "time": int(now)})
    path = sqlite_path(connection.engine.url)
    if path is not None and not os.access(path, os.W_OK):
        raise OperationalError(None, None, sqlite3.OperationalError("attempt to write a readonly database"))


def last_heartbeat(connection: Connection, name: str) -> int | None:
    """Return when a row was last written, in seconds since the epoch."""
    found: int | None = connection.execute(_READ, {"name": name}).scalar()
    return found


class WriteHealth:
    """Whether the database accepts the writes of this process: the result and the age of the last one."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._succeeded = monotonic()
        self._attempted: float | None = None
        self.failing = False
        """Whether the last write failed."""

    @property
    def ok(self) -> bool:
        """Whether the last write succeeded, at most MAX_AGE seconds ago."""
        return not self.failing and self._monotonic() - self._succeeded <= MAX_AGE

    def due_in(self) -> float:
        """Return the seconds until the next heartbeat."""
        if self._attempted is None:
            return 0.0
        return max(0.0, self._attempted + (RETRY if self.failing else INTERVAL) - self._monotonic())

    def succeed(self) -> None:
        """Note that a write was committed."""
        self._succeeded = self._attempted = self._monotonic()
        failed, self.failing = self.failing, False
        if failed:
            log.info("the database accepts writes again")

    def fail(self, error: Exception) -> None:
        """Note that a write failed. The first failure of an outage is logged with its reason."""
        self._attempted = self._monotonic()
        failed, self.failing = self.failing, True
        if not failed:
            reason = explain_database_failure(error) if isinstance(error, SQLAlchemyError) else type(error).__name__
            log.error("the database accepts no writes: %s", reason)
