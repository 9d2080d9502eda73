"""The owner process of a node: it runs the programs of a stdio upstream, and serves them to all workers.

So a caller finds its session whichever worker it reaches. `owner_process.py` starts it. Its standard input brings the
settings of the upstream, first once and then whenever the policy changes, and ends with the server. It has neither keys
nor a database, and sees no token.
"""

import asyncio
import json
import logging
import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy
from gatehouse.resourceserver.upstream.stdio.owner_messages import (
    EXPANSION,
    InvalidFrame,
    is_same_user,
    read_call,
    read_frame,
    read_settings,
    write_error,
    write_frame,
)
from gatehouse.resourceserver.upstream.stdio.stdio_upstream import StdioUpstream
from gatehouse.resourceserver.upstream.upstream import OutcomeUnknown, UpstreamError, UpstreamUnavailable
from gatehouse.shared.service.logs import configure_logs

MAX_REQUEST: Final = EXPANSION * 1024 * 1024 + 64 * 1024
"""Bytes of a message of a worker: callers send at most 1 MiB (MAX_BODY of the gate)."""

_MAX_SETTINGS: Final = 1024 * 1024
"""Bytes of the settings."""

_PARENT_CHECK: Final = 1.0
"""Seconds between two checks that the parent process still exists. Its workers also hold the standard input."""

log = logging.getLogger(__name__)


class _Generation:
    """The programs of one policy, which end when it is replaced and their calls are done."""

    def __init__(self, upstream: StdioUpstream) -> None:
        self.upstream = upstream
        self._calls = 0
        self._replaced = False
        self._done = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    @asynccontextmanager
    async def call(self) -> AsyncIterator[StdioUpstream]:
        """Keep the programs for a call."""
        self._calls += 1
        try:
            yield self.upstream
        finally:
            self._calls -= 1
            self._end_if_unused()

    def replace(self) -> None:
        """Begin no more calls."""
        self._replaced = True
        self._end_if_unused()

    async def end(self) -> None:
        """End the programs now."""
        self._done.set()
        await self.task

    def _end_if_unused(self) -> None:
        if self._replaced and not self._calls:
            self._done.set()

    async def _run(self) -> None:
        async with self.upstream.running():
            await self._done.wait()


class OwnerServer:
    """Serves the programs of the current policy on a Unix socket."""

    def __init__(self) -> None:
        self._current: _Generation | None = None
        self._generations: set[_Generation] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def change(self, members: dict[str, Any] | None) -> None:
        """Serve the programs of other settings; None for no programs.

        Those of the previous settings end when their calls are done.
        """
        try:
            upstream = None if members is None else StdioUpstream(*read_settings(members))
        except InvalidPolicy as error:
            # The previous programs may run as another user than the policy says now.
            log.error("the programs of the new policy cannot be started: %s", error)
            upstream = None
        if self._current is not None:
            self._current.replace()
        self._current = None if upstream is None else self._begin(upstream)

    def _begin(self, upstream: StdioUpstream) -> _Generation:
        generation = _Generation(upstream)
        self._generations.add(generation)
        generation.task.add_done_callback(lambda _: self._generations.discard(generation))
        return generation

    @asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[None]:
        """Listen on a path. At the end, all programs end. Raises OSError."""
        with _listen(path) as listener:
            server = await asyncio.start_unix_server(self._connect, sock=listener)
            try:
                yield
            finally:
                server.close()
                for writer in self._writers:
                    writer.close()
                await asyncio.gather(*(generation.end() for generation in self._generations))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        calls: dict[int, asyncio.Task[None]] = {}
        try:
            if is_same_user(writer.get_extra_info("socket")):
                await self._receive(reader, writer, calls)
        except InvalidFrame:
            log.error("a worker sent a message that cannot be read")
        finally:
            # The callers of a worker that has gone wait for nothing any more.
            for call in calls.values():
                call.cancel()
            self._writers.discard(writer)
            writer.close()

    async def _receive(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, calls: dict[int, asyncio.Task[None]]
    ) -> None:
        while (message := await read_frame(reader, MAX_REQUEST)) is not None:
            match message:
                case {"cancel": int(number)}:
                    if (call := calls.get(number)) is not None:
                        call.cancel()
                case {"id": int(number)}:
                    calls[number] = asyncio.create_task(self._answer(writer, number, message))
                    calls[number].add_done_callback(partial(_remove, calls, number))
                case _:
                    raise InvalidFrame

    async def _answer(self, writer: asyncio.StreamWriter, number: int, message: dict[str, Any]) -> None:
        """Carry out a request of a worker, and send its outcome."""
        try:
            outcome = {"id": number, "result": await self._carry_out(writer, number, message)}
        except UpstreamError as error:
            outcome = {"id": number, "error": write_error(error)}
        except Exception:
            log.exception("a call of the upstream failed")
            outcome = {"id": number, "error": write_error(OutcomeUnknown("an internal error"))}
        await _send(writer, outcome)

    async def _carry_out(self, writer: asyncio.StreamWriter, number: int, message: dict[str, Any]) -> Any:
        if self._current is None:
            raise UpstreamUnavailable("the upstream is no program, or its policy cannot be used")

        async def notify(progress: float, total: float | None, text: str | None) -> None:
            await _send(writer, {"id": number, "progress": [progress, total, text]})

        async with self._current.call() as upstream:
            if "call" in message:
                return await upstream.call_tool(read_call(message["call"], notify))
            return await upstream.list_tools()


def _listen(path: Path) -> socket.socket:
    """Return a private socket on a path, where another one may be left."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    return listener


def _remove(calls: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    del calls[number]


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    """Send a message. A worker that has gone is noticed by the reader of its connection."""
    writer.write(write_frame(message))
    try:
        await writer.drain()
    except OSError:
        return


async def run(path: Path, source: asyncio.StreamReader, stopped: asyncio.Event) -> None:
    """Serve until `stopped` is set, or the source of the settings ends."""
    server = OwnerServer()

    async def follow() -> None:
        while line := await source.readline():
            server.change(json.loads(line))
        stopped.set()

    async with server.serving(path):
        following = asyncio.create_task(follow())
        await stopped.wait()
        following.cancel()


async def _main(path: Path, parent: int) -> None:
    loop = asyncio.get_running_loop()
    source, stopped = asyncio.StreamReader(_MAX_SETTINGS), asyncio.Event()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin)
    loop.add_signal_handler(signal.SIGTERM, stopped.set)

    async def watch() -> None:
        while os.getppid() == parent:  # noqa: ASYNC110 - the kernel announces it only to one thread
            await asyncio.sleep(_PARENT_CHECK)
        stopped.set()

    watching = asyncio.create_task(watch())
    await run(path, source, stopped)
    watching.cancel()
    transport.close()
    if os.getppid() != parent:
        # It was killed, and removes nothing.
        shutil.rmtree(path.parent, ignore_errors=True)


def main() -> None:
    """Serve until the parent ends, or SIGTERM.

    The arguments are the path of the socket, the process id of the parent, and the format and the level of the log.
    """
    path, parent, log_format, log_level = sys.argv[1:]
    # Each program needs five descriptors.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    configure_logs(log_format, log_level)  # type: ignore[arg-type]  # as the server has validated them
    uvloop.run(_main(Path(path), int(parent)))
