"""The deadline of a call limits its waits for a connection, a lock and the audit log, and not the work of a tool."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from sqlalchemy.exc import TimeoutError as PoolTimeout
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server

from gatehouse.directory.directory import Directory, open_directory
from gatehouse.resourceserver.catalogue import Catalogue, Progress, Scope, ToolFailed, ToolGroup, Transactions
from gatehouse.resourceserver.db.request_database import CONNECTIONS, RequestDatabase
from gatehouse.shared.service import deadline

pytestmark = pytest.mark.anyio


class Nothing(BaseModel):
    """An empty result."""


@pytest.fixture
def expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline of every request has passed when it begins."""
    monkeypatch.setattr(deadline, "begin", partial(deadline.begin, 0))


def catalogue_of(tool: Callable[..., Any], **options: Any) -> Catalogue:
    group = ToolGroup()
    group.tool(scopes=["env:write"], read_only=False, **options)(tool)
    return Catalogue("test", [Scope("env:write", "Write")], [group], providers={Directory: open_directory})


async def test_a_connection_that_is_not_free_in_time_is_refused(resourceserver: ResourceServer) -> None:
    database, go_on = RequestDatabase(resourceserver.settings.database), threading.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(CONNECTIONS):
            tasks.start_soon(database.run_read, lambda _: go_on.wait())
        await anyio.wait_all_tasks_blocked()
        with deadline.renewed(0), pytest.raises(PoolTimeout):
            await database.run_read(lambda _: pytest.fail("all connections are in use"))
        go_on.set()
    with deadline.renewed(0):
        await database.ping()
    database.close()


@pytest.mark.usefixtures("expired")
async def test_a_call_that_need_not_wait_succeeds_after_its_deadline(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token("env:write", workspace_id=resourceserver.create_workspace())
    assert await resourceserver.result("create_environment", token, name="one")


async def test_a_write_that_cannot_start_in_time_changes_nothing(
    resourceserver: ResourceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = resourceserver.issuer.token("env:write", workspace_id=resourceserver.create_workspace())
    with resourceserver.admin_database.write() as session:
        session.connection()
        with monkeypatch.context() as patched:
            patched.setattr(deadline, "begin", partial(deadline.begin, 0))
            refused = await resourceserver.failure("create_environment", token, name="one")
    assert refused.startswith("Nothing was changed.")
    assert "in a few seconds" in refused
    assert await resourceserver.result("create_environment", token, name="one"), "the name is free"


async def test_the_work_of_a_tool_in_a_thread_does_not_count(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is recorded after the work, when a deadline that counted it would have passed."""
    monkeypatch.setattr(deadline, "monotonic", clock)

    def work(directory: Directory) -> Nothing:
        """Work for a minute."""
        clock.advance(60)
        raise ToolFailed(f"{deadline.remaining()}")

    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, catalogue_of(work)) as server:
        token = server.issuer.token("env:write", workspace_id=server.create_workspace())
        failure = await server.failure("work", token)
        assert server.audit()[-1]["outcome"] == "failed"
    assert failure == "0.0"


async def test_the_work_of_a_tool_does_not_count(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "monotonic", clock)
    left: list[float] = []

    async def work(transactions: Transactions, progress: Progress) -> Nothing:
        """Work for a minute."""
        left.append(deadline.remaining())
        clock.advance(30)
        await transactions.run(Directory, lambda _: left.append(deadline.remaining()))
        return Nothing()

    catalogue = catalogue_of(work, streaming=True)
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, catalogue) as server:
        token = server.issuer.token("env:write", workspace_id=server.create_workspace())
        await server.result("work", token)
    assert left == [deadline.WAIT_LIMIT, deadline.WAIT_LIMIT]
