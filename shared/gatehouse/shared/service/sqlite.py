"""SQLite: its connections, and the order in which the threads of a process write."""

import contextlib
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from gatehouse.shared.service.deadline import remaining

_BUSY_STEP = 250
"""Milliseconds. SQLite's limit is rounded down to this step, so that most transactions need not change it."""


_WAL_PAUSE = 0.01
"""Seconds between two attempts to switch a file to WAL."""


class Turns:
    """A lock that threads get in the order in which they asked for it.

    With a plain lock, a thread that writes several times in a row would get it again before a waiting one wakes up.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._busy = False

    def begin(self, seconds: float) -> bool:
        """Wait for a turn. Return whether it began in time."""
        with self._mutex:
            if not self._busy:
                self._busy = True
                return True
            mine = threading.Event()
            self._waiting.append(mine)
        if mine.wait(seconds):
            return True
        with self._mutex:
            # The turn may have begun after the wait ended.
            if mine.is_set():
                return True
            self._waiting.remove(mine)
            return False

    def end(self) -> None:
        """End the turn, and begin that of the thread that has waited longest."""
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._busy = False


class SqliteConnection(sqlite3.Connection):
    """Writes in turn with the other connections of its engine, and ends its transaction when it is closed.

    SQLite waits for its write lock by trying again after ever longer pauses. A thread could wait for seconds while
    another one writes again and again, so the threads of a process wait for each other first, and in order.

    SQLite keeps a closed connection, with its locks, until the last unfinished SELECT is garbage. A function that
    raises while it reads rows leaves one.
    """

    _turns: "Turns | None" = None

    def wait_for_turn(self, turns: Turns, seconds: float) -> None:
        """Wait until no other connection writes. The turn ends with the transaction. Raises OperationalError."""
        if not turns.begin(seconds):
            raise OperationalError("BEGIN", None, sqlite3.OperationalError("database is locked"))
        self._turns = turns

    def _end_turn(self) -> None:
        if self._turns is not None:
            self._turns.end()
            self._turns = None

    def commit(self) -> None:
        super().commit()
        self._end_turn()

    def rollback(self) -> None:
        try:
            super().rollback()
        finally:
            self._end_turn()

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.rollback()
        super().close()


def listen(engine: Engine, *, references: bool, lock_timeout: int, read_only: bool = False) -> None:
    """Prepare each connection of an engine, and each transaction. `lock_timeout` is in milliseconds.

    With `references`, foreign keys are enforced. With `read_only`, the file cannot be changed.
    """
    path = Path(str(engine.url.database))
    turns = Turns()

    @event.listens_for(engine, "do_connect")
    def refuse_missing(*_: Any) -> None:
        # SQLite would create an empty database in place of one that was moved away.
        if not path.exists():
            raise sqlite3.OperationalError("unable to open database file: there is none")

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: ConnectionPoolEntry) -> None:
        # The driver must not begin transactions: the listener below does.
        connection.isolation_level = None
        cursor = connection.cursor()
        # Changing the journal mode waits for locks, too.
        wait = _busy_timeout(lock_timeout)
        cursor.execute(f"PRAGMA busy_timeout={wait}")
        if read_only:
            cursor.execute("PRAGMA query_only=ON")
        else:
            _use_wal(cursor, time.monotonic() + wait / 1000)
        # There may be no temporary folder, as in a container with a read-only root file system.
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.execute(f"PRAGMA foreign_keys={'ON' if references else 'OFF'}")
        cursor.close()
        record.info["file"] = _identity(path)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("gatehouse_read_only", False)
        if not read_only:
            # If BEGIN fails, the turn ends with the rollback when the connection returns to the pool.
            driver_connection: Any = connection.connection.dbapi_connection
            driver_connection.wait_for_turn(turns, remaining(lock_timeout / 1000))
        if connection.info.get("busy_timeout") != (wait := _busy_timeout(lock_timeout)):
            connection.exec_driver_sql(f"PRAGMA busy_timeout={wait}")
            connection.info["busy_timeout"] = wait
        if not read_only and connection.info["file"] != _identity(path):
            # What is written to a file that was moved, deleted or replaced is lost, and SQLite does not notice.
            raise OperationalError("BEGIN", None, sqlite3.OperationalError("the database file was moved or replaced"))
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what identifies the file at a path on this machine; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _use_wal(cursor: sqlite3.Cursor, until: float) -> None:
    """Switch a file to WAL, which stays with it. Raises sqlite3.OperationalError if it is locked until then.

    Of the connections that switch a new file at the same time, SQLite refuses all but one at once: if they waited for
    each other, none would get on.
    """
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() >= until:
                raise
            time.sleep(_WAL_PAUSE)
        else:
            return


def _busy_timeout(limit: int) -> int:
    """Return how many milliseconds a transaction on SQLite may wait for a lock."""
    return min(limit, int(remaining() * 1000) // _BUSY_STEP * _BUSY_STEP)
