"""The threads of a process: what waits for them, and what does not occupy them."""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from support.resourceserver import ResourceServer

from gatehouse.resourceserver.db.request_database import CONNECTIONS, RequestDatabase, Threads

pytestmark = pytest.mark.anyio

NAME: ContextVar[str] = ContextVar("NAME")


class Held:
    """Functions that wait in their threads until the test lets them end."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.ends = threading.Event()

    def wait(self, *_: object) -> str:
        """Wait in a thread."""
        self.begun.release()
        self.ends.wait()
        return "done"

    async def until_begun(self) -> None:
        """Wait until one more function has begun."""
        await anyio.to_thread.run_sync(self.begun.acquire)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
async def database(resourceserver: ResourceServer) -> AsyncIterator[RequestDatabase]:
    database = RequestDatabase(resourceserver.settings.database)
    yield database
    database.close()


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads(1)
    yield threads
    threads.close()


async def test_a_function_sees_the_context_of_its_task(threads: Threads) -> None:
    NAME.set("outside")

    def change() -> tuple[str, bool]:
        before = NAME.get()
        NAME.set("inside")
        return before, threading.current_thread() is threading.main_thread()

    assert await threads.run(change) == ("outside", False)
    assert NAME.get() == "outside"


@pytest.mark.only_on("sqlite")
async def test_waiting_writers_do_not_keep_readers_from_a_thread(database: RequestDatabase, held: Held) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(2 * CONNECTIONS):
            tasks.start_soon(database.run_write, held.wait)
        await held.until_begun()
        assert await database.run_read(lambda session: session.scalar(text("SELECT 1"))) == 1
        held.ends.set()


@pytest.mark.only_on("sqlite")
async def test_a_writer_that_waits_too_long_is_refused(resourceserver: ResourceServer, held: Held) -> None:
    database = RequestDatabase(resourceserver.settings.database, lock_timeout=50)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(database.run_write, held.wait)
        await held.until_begun()
        with pytest.raises(PoolTimeout):
            await database.run_write(lambda _: pytest.fail("another transaction writes"))
        held.ends.set()
    database.close()


@pytest.mark.both_databases
async def test_the_transaction_has_ended_when_the_loop_gets_the_result(database: RequestDatabase) -> None:
    sessions: list[Session] = []
    await database.run_write(sessions.append)
    await database.run_read(sessions.append)
    with pytest.raises(ZeroDivisionError):
        await database.run_write(lambda session: (sessions.append(session), 1 / 0))
    assert [session.in_transaction() for session in sessions] == [False] * 3


async def test_a_process_that_stops_runs_no_function_and_reports_an_outage(threads: Threads) -> None:
    assert await threads.run(lambda: "done") == "done"
    threads.close()
    with pytest.raises(PoolTimeout):
        await threads.run(lambda: "done")


async def test_a_function_that_was_reported_as_not_run_is_never_run(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executor keeps a call for which the system has no thread left. The caller may have repeated it by then."""
    threads, calls = Threads(2), list[str]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(threads.run, held.wait)
        await held.until_begun()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_thread)
            with pytest.raises(PoolTimeout):
                await threads.run(partial(calls.append, "first"))
        held.ends.set()
    await threads.run(partial(calls.append, "second"))
    await threads.run(partial(calls.append, "third"))
    threads.close()
    assert calls == ["second", "third"]


async def test_the_result_of_a_function_counts_although_no_thread_could_be_started_for_it(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that becomes free can take a call before the executor fails to start another one."""

    def take_and_fail(executor: concurrent.futures.ThreadPoolExecutor) -> None:
        queue: Any = executor._work_queue
        queue.get_nowait().run()
        _no_thread()

    assert await threads.run(lambda: "done") == "done"
    with monkeypatch.context() as patch:
        patch.setattr(concurrent.futures.ThreadPoolExecutor, "_adjust_thread_count", take_and_fail)
        assert await threads.run(lambda: "taken") == "taken"


def _no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


# Cancelled tasks


async def test_a_task_that_is_cancelled_gets_the_result_first(threads: Threads, held: Held) -> None:
    results = []

    async def run() -> None:
        results.append(await threads.run(held.wait))
        await anyio.lowlevel.checkpoint()
        pytest.fail("the task is cancelled")

    task = asyncio.create_task(run())
    await held.until_begun()
    for _ in range(2):
        task.cancel()
        await anyio.wait_all_tasks_blocked()
    held.ends.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert results == ["done"]


async def test_a_cancelled_scope_within_a_task_ends_alone(threads: Threads, held: Held) -> None:
    async def run() -> str:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await threads.run(held.wait)
            await anyio.lowlevel.checkpoint()
            pytest.fail("the scope is cancelled")
        await anyio.lowlevel.checkpoint()
        return "after the scope"

    scopes: list[anyio.CancelScope] = []
    task = asyncio.create_task(run())
    await held.until_begun()
    scopes[0].cancel()
    await anyio.wait_all_tasks_blocked()
    held.ends.set()
    assert await task == "after the scope"


async def test_a_coroutine_that_is_closed_waits_for_its_thread(
    threads: Threads, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Any] = []
    wait: Callable[..., Any] = concurrent.futures.wait

    def release_and_wait(work: Any) -> None:
        held.ends.set()
        waits.append(wait(work).done)

    monkeypatch.setattr(concurrent.futures, "wait", release_and_wait)
    coroutine = threads.run(held.wait)
    coroutine.send(None)
    await held.until_begun()
    coroutine.close()
    assert [len(done) for done in waits] == [1]
    assert await threads.run(held.wait) == "done", "the thread is free"
