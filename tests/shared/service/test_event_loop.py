"""The loop of a worker runs on, whatever a task of the application raises."""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator

import pytest
import uvloop

from gatehouse.shared.service.event_loop import run_to_end


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


async def leave() -> None:
    sys.exit(3)


async def interrupt() -> None:
    raise KeyboardInterrupt


async def leave_later() -> None:
    await asyncio.sleep(0)
    sys.exit(3)


def in_a_task(loop: asyncio.AbstractEventLoop) -> None:
    for failing in (leave, interrupt, leave_later):
        loop.create_task(failing())


def in_a_callback(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(sys.exit, 3)
    loop.call_later(0, sys.exit, 3)


@pytest.mark.parametrize("begin", [in_a_task, in_a_callback])
def test_an_exit_of_another_task_does_not_end_the_loop(
    loop: asyncio.AbstractEventLoop,
    begin: Callable[[asyncio.AbstractEventLoop], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[str] = []

    async def serve() -> None:
        begin(loop)
        for _ in range(10):
            await asyncio.sleep(0)
        ended.append("serve")

    with caplog.at_level(logging.ERROR):
        run_to_end(loop, loop.create_task(serve()), lambda: False)
    assert ended == ["serve"]
    assert "a task of the application raised SystemExit, and the worker goes on" in caplog.text


def test_a_task_that_awaits_the_exiting_one_receives_its_exception(loop: asyncio.AbstractEventLoop) -> None:
    async def serve() -> int | str | None:
        try:
            await asyncio.create_task(leave_later())
        except SystemExit as error:
            return error.code
        return None

    task = loop.create_task(serve())
    run_to_end(loop, task, lambda: False)
    assert task.result() == 3


def test_what_the_task_itself_raises_ends_the_loop(loop: asyncio.AbstractEventLoop) -> None:
    for failing, error in ((leave, SystemExit), (interrupt, KeyboardInterrupt)):
        with pytest.raises(error):
            run_to_end(loop, loop.create_task(failing()), lambda: False)


def test_an_exit_ends_the_loop_of_a_process_that_is_being_stopped(loop: asyncio.AbstractEventLoop) -> None:
    task = loop.create_task(asyncio.sleep(60))
    loop.call_soon(sys.exit, 1)
    with pytest.raises(SystemExit):
        run_to_end(loop, task, lambda: True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
