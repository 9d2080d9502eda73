"""The deadline of a request: one limit for all its waits, whether for a thread, a connection, a lock or the audit log.

It is a context variable, so that the database and the audit writer know it without a parameter, on an event loop and in
the threads that a request uses. Without a request, each wait has the whole limit.
"""

import asyncio
import math
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from time import monotonic
from typing import Final, TypeVar

T = TypeVar("T")

WAIT_LIMIT: Final = 5.0
"""Seconds from reading a request until the last moment at which something in it may wait."""

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class DeadlineExceeded(Exception):
    """A request waited too long: all threads were busy, the database did not answer, or the process stops."""


def begin(limit: float = WAIT_LIMIT) -> None:
    """Begin the deadline of the request that the current context serves. Replaces that of the previous request."""
    _deadline.set(monotonic() + limit)


def remaining(limit: float = WAIT_LIMIT) -> float:
    """Return how many seconds a wait may last: at most `limit`, and zero after the deadline."""
    return max(0.0, min(limit, _deadline.get() - monotonic()))


async def before_deadline(awaitable: Awaitable[T]) -> T:
    """Wait for a result until the deadline of the request. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(remaining()) as limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded from None
        raise


class Paused:
    """A block whose time does not count: it works instead of waiting.

    A class, because a generator with `contextmanager` takes longer, and every call of a tool has such a block.
    """

    __slots__ = ("_before", "_started")

    def __enter__(self) -> None:
        self._before, self._started = _deadline.get(), monotonic()

    def __exit__(self, *_: object) -> None:
        _deadline.set(self._before + monotonic() - self._started)


@contextmanager
def renewed(limit: float = WAIT_LIMIT) -> Iterator[None]:
    """Give the block its own deadline."""
    before = _deadline.get()
    begin(limit)
    try:
        yield
    finally:
        _deadline.set(before)


def continue_from(context: Context) -> None:
    """Continue with the deadline of a copy of the current context, in which a thread worked for the request."""
    _deadline.set(context.get(_deadline, math.inf))
