"""The order in which the threads of a process write to SQLite."""

import threading
from types import SimpleNamespace

import pytest
from support.waiting import wait_until

from gatehouse.shared.service import sqlite
from gatehouse.shared.service.sqlite import Turns


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
