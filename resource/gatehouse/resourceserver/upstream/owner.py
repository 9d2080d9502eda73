"""The owner process of a node's programs (owner_server.py), as the server starts it and as its workers use it."""

import asyncio
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from gatehouse.resourceserver.catalogue.policy_file import StdioTransport, UpstreamSettings
from gatehouse.resourceserver.upstream.frames import (
    EXPANSION,
    InvalidFrame,
    is_same_user,
    read_error,
    read_frame,
    write_call,
    write_frame,
    write_settings,
)
from gatehouse.resourceserver.upstream.pending import PendingRequest
from gatehouse.resourceserver.upstream.upstream import Notify, OutcomeUnknown, ToolCall, UpstreamUnavailable
from gatehouse.shared.service.settings import LogFormat, LogLevel

_RESTART_INTERVAL: Final = 5.0
"""Seconds between two starts of the process."""

_STOP_TIMEOUT: Final = 10.0
"""Seconds that the process may need to end: a program has three times GRACE."""

_SEND_TIMEOUT: Final = 1.0
"""Seconds that the process may need to read its settings, while the server waits."""

_PROGRAM: Final = "from gatehouse.resourceserver.upstream.owner_server import main; main()"

_INHERITED: Final = ("LD_LIBRARY_PATH", "PATH")
"""Variables that the process gets. Those of the programs come with the settings, because others may hold secrets."""

_MAX_LIST: Final = 8 * 1024 * 1024
"""Bytes of all tools, as `collect_tools` limits them."""

_PATIENCE: Final = 3
"""The owner has ended a request long before so many times the timeout, which it needs for its start and its answer."""

log = logging.getLogger(__name__)


class _Running(NamedTuple):
    """An owner process that was started."""

    process: "subprocess.Popen[bytes]"
    settings: socket.socket
    """Brings it its settings, as its standard input."""


class ProgramOwner:
    """Starts and supervises the owner process while the upstream is a program.

    It belongs to the process that starts the workers, which learn the path of the socket from it.
    """

    def __init__(
        self,
        current: Callable[[], UpstreamSettings],
        log_format: LogFormat,
        log_level: LogLevel,
        parent_folder: str | None = None,
    ) -> None:
        """Create a private folder for the socket. `supervise` starts the process.

        Args:
            current: returns the settings of the accepted policy.
            log_format: of the process's log, which it writes to standard error.
            log_level: of the same.
            parent_folder: where to create the folder. None for the system's folder for temporary files.

        Raises:
            OSError: the folder cannot be created.
        """
        self._current = current
        self._log_options = (log_format, log_level)
        self._folder = Path(tempfile.mkdtemp(prefix="gatehouse-upstream-", dir=parent_folder))
        self.socket = self._folder / "socket"
        """Its path."""
        self._owner: _Running | None = None
        self._settings: UpstreamSettings | None = None
        self._started = float("-inf")

    def supervise(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Make the process run for the accepted policy. One that ends is started again after five seconds."""
        current = self._current()
        settings = current if isinstance(current.transport, StdioTransport) else None
        if self._owner is not None and self._owner.process.poll() is None:
            if settings != self._settings:
                self._send(self._owner, settings)
        elif settings is not None:
            self._start_if_due(settings, monotonic())

    def stop(self) -> None:
        """End the process and its programs, and remove the folder."""
        if self._owner is not None:
            process, connection = self._owner
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                # Its programs are killed with it (launcher.py).
                process.kill()
                process.wait()
            connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_if_due(self, settings: UpstreamSettings, now: float) -> None:
        if now - self._started < _RESTART_INTERVAL:
            return
        if self._owner is not None:
            self._owner.settings.close()
            log.error("the process that runs the upstream's programs has ended; it is started again")
        self._started = now
        try:
            self._owner = self._start()
        except OSError as error:
            # Calls fail, and the servers go on.
            log.error("the process that runs the upstream's programs cannot be started: %s", error.strerror)
        else:
            self._send(self._owner, settings)

    def _start(self) -> _Running:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        command = [sys.executable, "-I", "-c", _PROGRAM, str(self.socket), str(os.getpid()), *self._log_options]
        ours, theirs = socket.socketpair()
        ours.settimeout(_SEND_TIMEOUT)
        with theirs:
            try:
                # In a session of its own, because Ctrl-C must not end it before the workers.
                process = subprocess.Popen(  # noqa: S603
                    command, env=environment, stdin=theirs.fileno(), start_new_session=True
                )
            except OSError:
                ours.close()
                raise
        return _Running(process, ours)

    def _send(self, owner: _Running, settings: UpstreamSettings | None) -> None:
        """Tell the process its settings; None if the upstream is no program any more, and those that run may end.

        They go through its standard input, because other users can see the arguments of a process.
        """
        self._settings = settings
        members = None if settings is None else write_settings(settings, os.environ)
        try:
            owner.settings.sendall(json.dumps(members).encode() + b"\n")
        except OSError:
            # It has ended, or does not read. It gets them when it is started again.
            owner.process.kill()


class OwnerUpstream:
    """An upstream over the programs of the owner process. Use it in one event loop."""

    def __init__(self, path: Path, settings: UpstreamSettings) -> None:
        """Prepare to connect.

        Args:
            path: of the owner's socket.
            settings: those that the owner has, for the bounds of its answers.
        """
        self._path = path
        self._max_answer = EXPANSION * max(settings.max_result, _MAX_LIST) + 1024
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
