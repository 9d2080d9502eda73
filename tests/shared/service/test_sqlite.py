"""The order in which the threads of a process write to SQLite."""

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from support.waiting import wait_until

from gatehouse.shared.service import sqlite
from gatehouse.shared.service.sqlite import SqliteConnection, Turns


def test_turns_begin_in_the_order_in_which_they_were_asked_for() -> None:
    turns = Turns()
    order: list[str] = []

    def work(name: str) -> None:
        assert turns.begin(10)
        order.append(name)
        turns.end()

    assert turns.begin(0)
    threads = []
    for position, name in enumerate(("first", "second", "third"), start=1):
        threads.append(threading.Thread(target=work, args=(name,)))
        threads[-1].start()
        wait_until(lambda expected=position: len(turns._waiting) == expected)
    turns.end()
    # Plain locks let a thread that asks again at once overtake the waiting ones.
    work("again")
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second", "third", "again"]


def test_a_wait_that_ended_too_early_leaves_the_turn_to_the_next() -> None:
    turns = Turns()
    assert turns.begin(0)
    assert not turns.begin(0.01)
    turns.end()
    assert turns.begin(0)


def test_a_turn_that_begins_right_after_the_wait_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()

    class EndsTheTurnAfterTheWait(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            turns.end()
            return False

    assert turns.begin(0)
    monkeypatch.setattr(sqlite, "threading", SimpleNamespace(Event=EndsTheTurnAfterTheWait))
    assert turns.begin(0.01)
    assert not turns._waiting


def test_connections_that_create_a_file_at_the_same_time_all_get_it(tmp_path: Path) -> None:
    """SQLite refuses most of those that switch it to WAL together, although they would wait for a lock."""
    failures: list[Exception] = []

    def connect(path: Path, start: threading.Barrier) -> None:
        engine = create_engine(f"sqlite:///{path}", connect_args={"factory": SqliteConnection})
        sqlite.listen(engine, references=True, lock_timeout=5000)
        start.wait()
        try:
            engine.connect().close()
        except OperationalError as error:
            failures.append(error)
        finally:
            engine.dispose()

    for number in range(60):
        path = tmp_path / f"{number}.db"
        path.touch()
        start = threading.Barrier(4)
        threads = [threading.Thread(target=connect, args=(path, start)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_file_that_stays_locked_is_not_waited_for_without_end(tmp_path: Path) -> None:
    path = tmp_path / "locked.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        engine = create_engine(f"sqlite:///{path}", connect_args={"factory": SqliteConnection})
        sqlite.listen(engine, references=True, lock_timeout=0)
        with pytest.raises(OperationalError, match="database is locked"):
            engine.connect()
        other.execute("ROLLBACK")
        engine.connect().close()
        engine.dispose()


def test_a_file_is_tried_again_while_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            other.execute("ROLLBACK")

        monkeypatch.setattr(sqlite, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            sqlite._use_wal(connection.cursor(), time.monotonic() + 60)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert len(pauses) == 1
