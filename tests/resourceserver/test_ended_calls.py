"""A call that is cancelled or closed before its end has one audit event, with its true outcome."""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server
from support.streaming import tool_request

from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, ProviderCall, Scope, ToolGroup, provider

pytestmark = [pytest.mark.anyio, pytest.mark.both_ways]

CLOSED = ("failed", "the connection was closed before the end")


class Text(BaseModel):
    """The result of a tool."""

    text: str


class Panic(BaseException):
    """As a panic in a Rust extension raises."""


ENDS: dict[str, BaseException | None] = {"fine": None, "RuntimeError": RuntimeError("secret"), "Panic": Panic("secret")}


class Ledger:
    """What a transactional provider opens."""


@provider(transactional=True)
def open_ledger(_: ProviderCall) -> Ledger:
    return Ledger()


class Waiting:
    """Tools that wait until the test lets them end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.finish = threading.Event()

    def end(self, kind: str) -> Text:
        self.begun.set()
        self.finish.wait()
        if (error := ENDS[kind]) is not None:
            raise error
        return Text(text=kind)

    def catalogue(self) -> Catalogue:
        async def wait() -> Text:
            """Wait on the event loop, forever."""
            self.begun.set()
            await anyio.sleep_forever()
            return Text(text="waited")

        def wait_plainly(kind: str) -> Text:
            """Wait in a thread."""
            return self.end(kind)

        def wait_writing(ledger: Ledger, kind: str) -> Text:
            """Wait within a transaction."""
            return self.end(kind)

        def wait_reading(ledger: Ledger, kind: str) -> Text:
            """Wait within a transaction that reads."""
            return self.end(kind)

        async def write() -> Text:
            """Write outside of a transaction."""
            return Text(text="written")

        group = ToolGroup()
        for reading in (wait, wait_reading):
            group.tool(scopes=ANY_VALID_TOKEN, read_only=True)(reading)
        for writing in (wait_plainly, wait_writing, write):
            group.tool(scopes=ANY_VALID_TOKEN)(writing)
        return Catalogue("test", [Scope("a:b", "Nothing")], [group], providers={Ledger: open_ledger})


@pytest.fixture
def waiting(anyio_backend: str) -> Waiting:
    return Waiting()


@pytest.fixture
async def server(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, waiting: Waiting
) -> AsyncIterator[ResourceServer]:
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, waiting.catalogue()) as server:
        yield server


def posting(server: ResourceServer, tool: str, **arguments: str) -> tuple[asyncio.Task[None], anyio.CancelScope]:
    """Call a tool in a task. Return the task, and a scope within it."""
    body, headers = tool_request("2026-07-28", tool, arguments)
    scope = anyio.CancelScope()

    async def post() -> None:
        with scope:
            await server.post(body, server.issuer.token("a:b"), headers)

    return asyncio.create_task(post()), scope


async def outcomes(server: ResourceServer) -> list[tuple[str, str | None]]:
    """Return outcome and reason of every call, when all of them are on disk."""
    await server.call("no_such_tool", server.issuer.token("a:b"))
    return [(event["outcome"], event["reason"]) for event in server.audit(action="tool.call")][:-1]


@pytest.mark.parametrize("cancel", ["task", "scope"])
async def test_a_cancelled_call_is_recorded_and_ends(server: ResourceServer, waiting: Waiting, cancel: str) -> None:
    """gunicorn cancels the task of a request, the SDK an anyio scope around it."""
    task, scope = posting(server, "wait")
    await anyio.to_thread.run_sync(waiting.begun.wait)
    task.cancel() if cancel == "task" else scope.cancel()
    await asyncio.wait([task])
    assert task.cancelled() == (cancel == "task")
    assert await outcomes(server) == [CLOSED]


@pytest.mark.parametrize("cancel", ["task", "scope", "both"])
@pytest.mark.parametrize("tool", ["wait_plainly", "wait_writing", "wait_reading"])
@pytest.mark.parametrize(
    ("kind", "outcome"), [("fine", ("allowed", None)), ("RuntimeError", CLOSED), ("Panic", CLOSED)]
)
async def test_a_call_that_is_cancelled_in_its_thread_has_its_true_outcome(
    server: ResourceServer, waiting: Waiting, cancel: str, tool: str, kind: str, outcome: tuple[str, str | None]
) -> None:
    """A thread cannot be cancelled, so the call waits for it."""
    task, scope = posting(server, tool, kind=kind)
    await anyio.to_thread.run_sync(waiting.begun.wait)
    if cancel != "task":
        scope.cancel()
    if cancel != "scope":
        task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    waiting.finish.set()
    await asyncio.wait([task])
    assert await outcomes(server) == [outcome]


async def test_a_call_that_is_cancelled_while_its_event_is_written_has_one_outcome(server: ResourceServer) -> None:
    body, headers = tool_request("2026-07-28", "write", {})
    with server.admin_database.write() as session:
        session.connection()
        task = asyncio.create_task(server.post(body, server.issuer.token("a:b"), headers))
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    await server.call("no_such_tool", server.issuer.token("a:b"))
    assert [event["outcome"] for event in server.audit(action="tool.call")] == ["allowed", "refused"]


async def close(server: ResourceServer, waiting: Waiting, tool: str, **arguments: str) -> None:
    """Close the coroutine of a call whose tool waits, as asyncio does with the tasks that are left when it ends."""
    body, headers = tool_request("2026-07-28", tool, arguments)
    coroutine = server.post(body, server.issuer.token("a:b"), headers)
    task = asyncio.create_task(coroutine)
    await anyio.to_thread.run_sync(waiting.begun.wait)
    coroutine.close()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or task.exception()


async def test_a_call_that_is_closed_leaves_an_event(server: ResourceServer, waiting: Waiting) -> None:
    await close(server, waiting, "wait")
    assert await outcomes(server) == [CLOSED]


async def test_a_call_that_is_closed_in_its_thread_has_its_true_outcome(
    server: ResourceServer, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = concurrent.futures.wait

    def finish_and_wait(work: Any) -> None:
        waiting.finish.set()
        wait(work)

    monkeypatch.setattr(concurrent.futures, "wait", finish_and_wait)
    await close(server, waiting, "wait_writing", kind="fine")
    assert await outcomes(server) == [("allowed", None)]
