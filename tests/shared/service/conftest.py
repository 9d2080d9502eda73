"""Fixtures of the tests of the worker, and of what it logs."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.clock import FakeClock
from support.logs import Read, logging_put_back
from support.worker import FakeWorker, MakeWorker, answering

from gatehouse.shared.service.connection import Connection


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> set[Connection]:
    """Return the connections for which a request waits in the socket; a fake transport has none."""
    waiting: set[Connection] = set()
    monkeypatch.setattr("gatehouse.shared.service.connection.has_unread_data", lambda connection: connection in waiting)
    return waiting


@pytest.fixture
def worker(clock: FakeClock, unread: set[Connection], anyio_backend: Any) -> MakeWorker:
    """Make workers on the fake clock."""
    return lambda app=answering, **options: FakeWorker(app, clock, **options)


@pytest.fixture
def read(capfd: pytest.CaptureFixture[str]) -> Iterator[Read]:
    """Return a function that reads the log; logging is restored after the test."""
    with logging_put_back():
        yield lambda: capfd.readouterr().err
