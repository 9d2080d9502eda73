"""Keeps what one call raises away from all others.

A tool may raise anything: the panic of a native extension and `SystemExit` do not derive from `Exception`, and a
`CancelledError` may come from something that the tool awaited. With each of these, the SDK ends more than the call.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.bearer import verified_request
from gatehouse.resourceserver.bearer.verified_request import Context
from gatehouse.shared.service.requests import UNAVAILABLE

log = logging.getLogger(__name__)


class Cancellation:
    """Tells the cancellation of a call from a CancelledError of something that its tool awaited.

    Both gunicorn and anyio cancel a call by `Task.cancel()` of the task that runs it, which `Task.cancelling()` counts.
    A timeout within the tool counts as well, and is subtracted again when it is over.
    """

    def __init__(self) -> None:
        """Begin a call in the current task."""
        self._task = _current_task()
        self._requests = self._count()

    def _count(self) -> int:
        return self._task.cancelling() if self._task is not None else 0

    def within(self, error: BaseException) -> asyncio.CancelledError | None:
        """Return the CancelledError to raise again; None if the call goes on, whatever its tool raised."""
        if self._count() <= self._requests:
            return None
        return next((leaf for leaf in _leaves(error) if isinstance(leaf, asyncio.CancelledError)), None)

    def closes(self, error: BaseException) -> bool:
        """Tell whether an exception closes the coroutine of the call: Python throws it from outside of the task."""
        return isinstance(error, GeneratorExit) and _current_task() is not self._task


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        # The event loop is gone, and the garbage collector closes what is left.
        return None


def name_of(error: BaseException) -> str:
    """Return the name of the class of an exception, and of those in a group. It contains no text of the exception."""
    if not isinstance(error, BaseExceptionGroup):
        return type(error).__name__
    return f"{type(error).__name__} of {', '.join(sorted({type(leaf).__name__ for leaf in _leaves(error)}))}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for each in error.exceptions:
        yield from _leaves(each)


async def contain(ctx: Context, call_next: CallNext) -> HandlerResult:
    """Let no handler end the session manager: a middleware of the SDK's server, and the last line of defence.

    Any other exception would end the manager's task group, and with it every call of the process.

    Raises:
        MCPError: the handler raised neither an Exception nor the cancellation of its request.
    """
    cancellation = Cancellation()
    try:
        return await call_next(ctx)
    except BaseException as error:
        if isinstance(error, Exception):
            _note(ctx, _code_of(error))
            raise
        if cancellation.closes(error) or cancellation.within(error) is not None:
            raise
        log.error("a handler of %s raised %s", ctx.method, name_of(error))
        _note(ctx, json_rpc.UNAVAILABLE)
        raise MCPError(json_rpc.UNAVAILABLE, UNAVAILABLE) from error


def _code_of(error: Exception) -> int:
    """Return the code of the JSON-RPC error that the SDK makes of an exception."""
    if isinstance(error, MCPError):
        return error.error.code
    return json_rpc.INVALID_PARAMS if isinstance(error, ValidationError) else json_rpc.INTERNAL_ERROR


def _note(ctx: Context, code: int) -> None:
    """Note the error of a request for metrics."""
    request = verified_request.find(ctx.request.scope) if ctx.request is not None else None
    if request is not None:
        request.fail(code)
