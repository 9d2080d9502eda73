"""The configuration of gunicorn."""

import gc
from pathlib import Path
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter
from local_stack import free_port
from support.logs import logging_put_back

from gatehouse.shared.service.gunicorn import Server, heartbeat_folder
from gatehouse.shared.service.settings import ServerSettings


def test_heartbeats_are_kept_in_memory_where_that_is_possible(tmp_path: Path) -> None:
    assert heartbeat_folder(str(tmp_path)) == str(tmp_path)
    assert heartbeat_folder(str(tmp_path / "none")) is None


def test_the_garbage_collector_ignores_what_a_worker_starts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full garbage collection of it would stop all threads of the worker, for longer than an event waits."""
    frozen: list[int] = []

    def run(arbiter: Arbiter) -> None:
        before = gc.get_freeze_count()
        app = arbiter.app.load()
        frozen.append(gc.get_freeze_count() - before)
        assert all(app is not one for one in gc.get_objects())

    monkeypatch.setattr(Arbiter, "run", run)
    settings = ServerSettings(bind=f"127.0.0.1:{free_port()}", database_url="sqlite:///unused.db")
    created: dict[str, Any] = {"app": []}
    try:
        with logging_put_back():
            Server("authserver", settings, lambda: lambda: created).run()
    finally:
        gc.unfreeze()
    assert frozen > [0]
