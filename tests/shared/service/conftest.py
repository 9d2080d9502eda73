"""Fixtures of the tests of the worker."""

import importlib.util
import os
from typing import Any

import pytest
from support.clock import FakeClock
from support.worker import FakeWorker, MakeWorker, answering

from gatehouse.shared.service import connections
from gatehouse.shared.service.connections import Connection

FAST_PARSER = os.environ.get("FAST_PARSER")

fast = pytest.param(
    "fast",
    marks=pytest.mark.skipif(
        not FAST_PARSER and importlib.util.find_spec("gunicorn_h1c") is None,
        reason="gunicorn_h1c is not installed; make test-availability installs it, and fails without it",
    ),
)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> set[Connection]:
    """Return the connections for which a request waits in the socket; a fake transport has none."""
    waiting: set[Connection] = set()
    monkeypatch.setattr(connections, "has_unread_data", lambda connection: connection in waiting)
    return waiting


@pytest.fixture(params=["python", fast])
def worker(request: pytest.FixtureRequest, clock: FakeClock, unread: set[Connection], anyio_backend: Any) -> MakeWorker:
    """Make workers whose connections use one of gunicorn's parsers."""
    return lambda app=answering, **options: FakeWorker(app, clock, request.param, **options)
