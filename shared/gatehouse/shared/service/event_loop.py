"""Runs the event loop of a worker to its end, whatever a task of the application raises."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


def run_to_end(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[Any]", stopping: Callable[[], bool]) -> None:
    """Run a loop until a task is done.

    A loop raises SystemExit and KeyboardInterrupt of any task or callback to its caller, for example `sys.exit` in a
    task that a tool started. They would end the worker with all its requests. Nothing is lost by running the loop
    again: the task that raised is done, and anything that awaits it receives the exception. uvloop raises only after
    the callbacks that were ready, so the task to wait for may have ended meanwhile.

    Args:
        loop: the loop.
        task: the task to wait for.
        stopping: tells whether the process is being stopped, so that such an exception ends the loop.

    Raises:
        BaseException: what the task raised.
        SystemExit, KeyboardInterrupt: raised by another task or a callback while the process is being stopped.
    """
    while True:
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            if stopping() or (task.done() and not task.cancelled() and task.exception() is error):
                raise
            log.exception("a task of the application raised %s, and the worker goes on", type(error).__name__)
        if task.done():
            task.result()
            return
