"""An SQLite database that another process has locked, and the threads that wait for it."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Engine, event


class Waiters:
    """The threads of this process that began to wait for the write lock."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        """Their identifiers."""
        self._one = threading.Event()

    def wait_for_one(self) -> None:
        """Wait until a thread waits. Raises AssertionError."""
        assert self._one.wait(30), "no thread begins a transaction"

    def note(self, statement: str) -> None:
        """Note a statement that the current thread is about to execute."""
        if statement == "BEGIN IMMEDIATE":
            self.threads.add(threading.get_ident())
            self._one.set()


@contextmanager
def locked(file: Path) -> Iterator[Waiters]:
    """Hold the write lock until the block ends, as a backup or another worker does."""
    waiters = Waiters()

    def note(*arguments: object) -> None:
        waiters.note(str(arguments[2]))

    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        event.listen(Engine, "before_cursor_execute", note)
        try:
            yield waiters
        finally:
            event.remove(Engine, "before_cursor_execute", note)
            other.execute("ROLLBACK")
