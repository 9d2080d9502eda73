"""Waiting for what another process does, with a deadline."""

import time
from collections.abc import Callable

import anyio

_PAUSE = 0.02
"""Seconds between two looks. Another process announces no change, and a busy loop would slow it down."""


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition is true. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(_PAUSE)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition is true, while the event loop runs. Raises TimeoutError."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - nothing announces the change
            await anyio.sleep(_PAUSE)
