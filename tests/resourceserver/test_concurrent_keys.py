"""Several calls with one idempotency key at the same time: exactly one of them runs, and the others wait for it."""

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from support.clock import FakeClock
from support.databases import Template
from support.keyed_calls import KEY, Worked, outcomes, rows, serving
from support.resourceserver import ResourceServer, served

from gatehouse.directory.directory import Directory
from gatehouse.resourceserver.db.request_database import CONNECTIONS, RequestDatabase
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKeys, KeyedCall
from gatehouse.shared.service.database import LOCK_TIMEOUT

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

CALL = KeyedCall("", "agent_1", "work", KEY, b"digest")


class Nothing(BaseModel):
    """An empty result."""


@pytest.mark.threat("T-033")
async def test_exactly_one_of_several_concurrent_calls_runs(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token(workspace_id=resourceserver.create_workspace())
    results: list[dict[str, Any]] = []

    async def create(server: ResourceServer) -> None:
        arguments = {"name": "staging", "idempotency_key": KEY}
        results.append(await server.result("create_environment", token, **arguments))

    async with served(resourceserver.settings, resourceserver.issuer) as other, anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(create, resourceserver)
            tasks.start_soon(create, other)
    assert rows(resourceserver) == 1
    assert [result == results[0] for result in results] == [True] * 8
    assert sorted(replayed for _, _, replayed in outcomes(resourceserver)) == [False] + [True] * 7


@pytest.mark.parametrize("fails", [False, True])
async def test_a_second_call_waits_and_runs_only_if_the_first_fails(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, fails: bool
) -> None:
    inside, go_on, runs = threading.Event(), threading.Event(), []
    results: dict[str, dict[str, Any]] = {}

    def work(directory: Directory) -> Worked:
        """Wait, and fail on the first run if the test requests it."""
        runs.append("work")
        inside.set()
        go_on.wait()
        if fails and len(runs) == 1:
            raise RuntimeError
        return Worked(text=f"run {len(runs)}")

    async with serving(tmp_path, resourceserver_template, clock, work) as server:
        token = server.issuer.token(workspace_id=server.create_workspace())

        async def call(name: str) -> None:
            response = await server.call("work", token, idempotency_key=KEY)
            results[name] = response.json()["result"]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "first")
            await anyio.to_thread.run_sync(inside.wait)
            tasks.start_soon(call, "second")
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        last = await server.result("work", token, idempotency_key=KEY)
    assert len(runs) == (2 if fails else 1)
    assert {name: result["isError"] for name, result in results.items()} == {"first": fails, "second": False}
    assert results["second"]["structuredContent"] == last


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("in_time", [True, False])
async def test_a_call_waits_in_the_database_for_one_of_another_node(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, in_time: bool
) -> None:
    inside, go_on, runs = threading.Event(), threading.Event(), []
    results: list[dict[str, Any]] = []

    def work(directory: Directory) -> Worked:
        """Wait."""
        runs.append("work")
        inside.set()
        go_on.wait()
        return Worked(text="done")

    async with serving(tmp_path, resourceserver_template, clock, work) as server:
        token = server.issuer.token(workspace_id=server.create_workspace())
        lock_timeout = LOCK_TIMEOUT if in_time else 50

        async def call(node: ResourceServer) -> None:
            response = await node.call("work", token, idempotency_key=KEY)
            results.append(response.json()["result"])

        def waiting() -> bool:
            with server.admin_database.read() as session:
                return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))

        async with (
            served(server.settings, server.issuer, server.services.catalogue, lock_timeout) as other,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(call, server)
            await anyio.to_thread.run_sync(inside.wait)
            if in_time:
                tasks.start_soon(call, other)
                with anyio.fail_after(10):
                    while not await anyio.to_thread.run_sync(waiting):
                        pass
            else:
                await call(other)
            go_on.set()
    assert runs == ["work"]
    if in_time:
        assert results[0]["structuredContent"] == results[1]["structuredContent"] == {"text": "done"}
    else:
        assert "A call with this idempotency_key is in progress" in results[0]["content"][0]["text"]


@pytest.mark.threat("T-036")
async def test_a_call_that_waits_too_long_is_asked_to_try_again(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    inside, go_on, runs = threading.Event(), threading.Event(), []

    def work(directory: Directory) -> Nothing:
        """Wait."""
        runs.append("work")
        inside.set()
        go_on.wait()
        return Nothing()

    async with serving(tmp_path, resourceserver_template, clock, work, lock_timeout=50) as server:
        token = server.issuer.token(workspace_id=server.create_workspace())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: server.result("work", token, idempotency_key=KEY))
            await anyio.to_thread.run_sync(inside.wait)
            second = (await server.call("work", token, idempotency_key=KEY)).json()["result"]
            go_on.set()
        assert await server.result("work", token, idempotency_key=KEY) == {}
    assert second["isError"]
    assert "in a few seconds" in second["content"][0]["text"]
    assert runs == ["work"]


async def test_repeated_calls_wait_for_the_first_in_one_thread(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    inside, go_on, results = threading.Event(), threading.Event(), []

    def work(directory: Directory) -> Worked:
        """Wait."""
        inside.set()
        go_on.wait()
        return Worked(text="done")

    async with serving(tmp_path, resourceserver_template, clock, work) as server:
        token = server.issuer.token(workspace_id=server.create_workspace())

        async def call() -> None:
            results.append(await server.result("work", token, idempotency_key=KEY))

        async with anyio.create_task_group() as tasks:
            for _ in range(2 * CONNECTIONS):
                tasks.start_soon(call)
            await anyio.to_thread.run_sync(inside.wait)
            # Each of them would hold a connection.
            for _ in range(CONNECTIONS):
                await server.services.database.ping()
            go_on.set()
    assert results == [{"text": "done"}] * 2 * CONNECTIONS


@pytest.mark.only_on("postgresql")
async def test_a_failure_of_the_database_is_not_reported_as_a_key_in_use(
    resourceserver: ResourceServer, clock: FakeClock
) -> None:
    database = RequestDatabase(resourceserver.settings.database)
    keys = IdempotencyKeys(database, clock)
    inside, go_on = threading.Event(), threading.Event()

    def hold(session: Session) -> None:
        assert keys.reserve(session, CALL) is None
        inside.set()
        go_on.wait()

    def reserve_quickly(session: Session) -> None:
        session.execute(text("SET LOCAL statement_timeout = 50"))
        keys.reserve(session, CALL)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(database.run_write, hold)
        await anyio.to_thread.run_sync(inside.wait)
        with pytest.raises(OperationalError, match="QueryCanceled"):
            await database.run_write(reserve_quickly)
        go_on.set()
    database.close()
