"""The upstream as a worker uses it whose programs belong to the owner process of the node (owner_server.py)."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path
from typing import Any, Final

import anyio

from gatehouse.resourceserver.catalogue.policy_file import UpstreamSettings
from gatehouse.resourceserver.upstream.stdio.owner_messages import (
    EXPANSION,
    InvalidFrame,
    is_same_user,
    read_error,
    read_frame,
    write_call,
    write_frame,
)
from gatehouse.resourceserver.upstream.stdio.pending import PendingRequest
from gatehouse.resourceserver.upstream.tool_list import MAX_LIST
from gatehouse.resourceserver.upstream.upstream import Notify, OutcomeUnknown, ToolCall, UpstreamUnavailable

_PATIENCE: Final = 3
"""The owner ends a request before this many timeouts: it needs one for the start of a program, one for the answer."""

log = logging.getLogger(__name__)


class OwnerUpstream:
    """An upstream over the programs of the owner process. Use it in one event loop."""

    def __init__(self, path: Path, settings: UpstreamSettings) -> None:
        """Prepare to connect.

        Args:
            path: of the owner's socket.
            settings: those that the owner has, for the bounds of its answers.
        """
        self._path = path
        self._max_answer = EXPANSION * max(settings.max_result, MAX_LIST) + 1024
        self._limit = _PATIENCE * settings.timeout
        self._connecting = asyncio.Lock()
        self._connection: _Connection | None = None
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Return the context in which the upstream can be used. It connects with the first call."""
        try:
            yield
        finally:
            self._closed = True
            if self._connection is not None:
                with anyio.CancelScope(shield=True):
                    await self._connection.close()

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return all tools, of every page, as the upstream describes them. Raises UpstreamError."""
        tools: list[dict[str, Any]] = await self._request({"list": True}, None)
        return tools

    async def call_tool(self, call: ToolCall) -> dict[str, Any]:
        """Call a tool in the caller's session, and return the `result` of the answer, not yet validated.

        If the task is cancelled, the program is told to stop. Raises UpstreamError as StdioUpstream does.

        Raises:
            UpstreamUnavailable: also if the owner process does not run.
            OutcomeUnknown: also if the owner process ended during the call.
        """
        result: dict[str, Any] = await self._request({"call": write_call(call)}, call.notify)
        return result

    async def _request(self, members: dict[str, Any], notify: Notify | None) -> Any:
        connection = self._connection
        if connection is None or not connection.open:
            connection = await self._connect()
        return await connection.request(members, self._limit, notify)

    async def _connect(self) -> "_Connection":
        async with self._connecting:
            if self._connection is not None and self._connection.open:
                return self._connection
            if self._closed:
                raise UpstreamUnavailable("the gateway is being stopped")
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path))
            except OSError:
                raise UpstreamUnavailable("the process that runs the upstream's programs is not running") from None
            if not is_same_user(writer.get_extra_info("socket")):
                writer.close()
                raise UpstreamUnavailable("the process that runs the upstream's programs is not the gateway's")
            self._connection = _Connection(reader, writer, self._max_answer)
            return self._connection


class _Connection:
    """A connection to the owner process, and the requests on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_answer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._max_answer = max_answer
        self._requests: dict[int, PendingRequest[Any]] = {}
        self._last_id = 0
        self.open = True
        # In a context of its own: it outlives the request that connects.
        self._reading = asyncio.create_task(self._read(), context=Context())

    async def request(self, members: dict[str, Any], limit: float, notify: Notify | None) -> Any:
        """Send a request, and return its result. Raises UpstreamError."""
        self._last_id = number = self._last_id + 1
        request = self._requests[number] = PendingRequest()
        # Without waiting: the gateway limits how many requests it processes at once, and their size.
        self._writer.write(write_frame({"id": number, **members}))
        try:
            return await request.wait(limit, notify)
        except TimeoutError:
            raise OutcomeUnknown("the process that runs the upstream's programs did not answer in time") from None
        finally:
            if self._requests.pop(number, None) is not None and self.open:
                self._writer.write(write_frame({"cancel": number}))

    async def close(self) -> None:
        """Close the connection. The owner cancels the requests without an answer."""
        # Without sending what is left, because an owner that hangs would never read it.
        self._writer.transport.abort()
        await self._reading

    async def _read(self) -> None:
        try:
            while (message := await read_frame(self._reader, self._max_answer)) is not None:
                self._receive(message)
        except InvalidFrame:
            log.error("the process that runs the upstream's programs sent a message that cannot be read")
        finally:
            self.open = False
            self._writer.close()
            for request in self._requests.values():
                request.end(OutcomeUnknown("the process that runs the upstream's programs has ended"))
            self._requests.clear()

    def _receive(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if (request := self._requests.get(number)) is None:
            # It was cancelled.
            return
        if "progress" in message:
            progress, total, text = message["progress"]
            request.add_progress((progress, total, text))
            return
        del self._requests[number]
        request.end(read_error(message["error"]) if "error" in message else message["result"])
