"""Cancelled calls: a client chooses when to close its connection, and so at which await its call is cancelled."""

import asyncio
import gc
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from sqlalchemy import Engine, event, text
from support.resourceserver import ResourceServer, modern_request

pytestmark = pytest.mark.anyio

AWAITS = 60
"""More than a call has before it waits for a thread."""


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """Disable the garbage collector, which could close an abandoned connection. On an idle server, it does not run."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def cut_off(server: ResourceServer, after: int, tool: str, token: str, **arguments: str) -> None:
    """Make a call and cancel it after a number of turns of the event loop, as the SDK does when a connection ends."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: server.call(tool, token, **arguments))
        for _ in range(after):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


def counted(server: ResourceServer, query: str) -> int:
    with server.admin_database.read() as session:
        return session.scalar(text(query)) or 0


@pytest.mark.threat("T-046")
@pytest.mark.both_databases
async def test_a_call_cancelled_at_any_await_leaves_no_lock(resourceserver: ResourceServer) -> None:
    """CWE-667, CWE-772: a database connection abandoned within a transaction would hold SQLite's only write lock.

    Repeated with its key, the call runs once, whether or not the first one completed
    (draft-ietf-httpapi-idempotency-key-header).
    """
    token = resourceserver.issuer.token(workspace_id=resourceserver.create_workspace())
    assert await resourceserver.result("create_environment", token, name="control")
    for after in range(AWAITS):
        call = {"name": f"cut-off-{after}", "idempotency_key": f"call-{after:04}"}
        await cut_off(resourceserver, after, "list_environments", token)
        await cut_off(resourceserver, after, "create_environment", token, **call)
        assert await resourceserver.result("create_environment", token, **call)
    assert counted(resourceserver, "SELECT count(*) FROM environment") == 1 + AWAITS
    events = counted(
        resourceserver,
        "SELECT count(*) FROM audit_event WHERE object = 'create_environment' AND outcome = 'allowed' "
        "AND CAST(detail AS TEXT) NOT LIKE '%replayed%'",
    )
    assert events == 1 + AWAITS


@pytest.mark.threat("T-046")
@pytest.mark.both_databases
async def test_a_call_cancelled_within_any_statement_leaves_no_lock(resourceserver: ResourceServer) -> None:
    """CWE-667: gunicorn cancels the task of a call that outlives its connection, whatever it awaits."""
    token = resourceserver.issuer.token(workspace_id=resourceserver.create_workspace())
    loop = asyncio.get_running_loop()
    for position in range(20):
        arguments = {"name": f"cut-off-{position}", "idempotency_key": f"call-{position:04}"}
        body, headers = modern_request("tools/call", name="create_environment", arguments=arguments)
        task = asyncio.create_task(resourceserver.post(body, token, headers))
        statements = itertools.count()

        def cut_off(*_: object, task: asyncio.Task[Any] = task, left: Iterator[int] = statements) -> None:
            # The audit writer has statements as well.
            if threading.current_thread().name.startswith("call") and next(left) == position:  # noqa: B023
                loop.call_soon_threadsafe(task.cancel)

        event.listen(Engine, "before_cursor_execute", cut_off)
        await asyncio.wait([task])
        event.remove(Engine, "before_cursor_execute", cut_off)
        assert await resourceserver.result("create_environment", token, **arguments)
        if not task.cancelled():
            break
    else:
        pytest.fail("the call has more statements")
    assert position > 3, "each statement was cut off"
    assert counted(resourceserver, "SELECT count(*) FROM environment") == position + 1
