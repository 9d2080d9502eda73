"""One process of an upstream's program: its lifetime, its messages, and the requests that it has not answered.

Whatever the program does, it neither delays nor blocks the event loop of the gateway for long, what is kept of it is
bounded, and no process of its process group outlives it. A process that leaves the group (setsid) is not followed:
only a container or a systemd unit can contain it.
"""

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from gatehouse.resourceserver.upstream.messages import (
    Answer,
    ProgressNotification,
    ServerRequest,
    cancellation,
    read_message,
    write_notification,
    write_request,
)
from gatehouse.resourceserver.upstream.stdio.error_output import ErrorOutput
from gatehouse.resourceserver.upstream.stdio.launch import Launch
from gatehouse.resourceserver.upstream.stdio.pending import PendingRequest
from gatehouse.resourceserver.upstream.stdio.pipes import Line, LineReader, LineWriter
from gatehouse.resourceserver.upstream.stdio.throttles import Allowance, LimitedLog
from gatehouse.resourceserver.upstream.upstream import Notify, OutcomeUnknown, UpstreamUnavailable

GRACE: Final = 2.0
"""Seconds that a program has to end after its standard input was closed, and again after SIGTERM."""

MAX_UNSENT: Final = 8 * 1024 * 1024
"""Bytes of messages that are kept for a program that does not read them. The longest request has half of them."""

_ENDLESS: Final = 8
"""A line that is longer than this many times the maximum length is treated as endless."""

_UNEXPECTED_BURST: Final = 10_000
_UNEXPECTED_A_SECOND: Final = 1_000
"""Lines that no request waits for: notifications, requests, and what is not MCP. More end the program."""

_ID_FIRST = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*([0-9]{1,15})\s*,')
_ID_LAST = re.compile(rb',\s*"id"\s*:\s*([0-9]{1,15})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z')
"""Where SDKs write the id. That of a line that is too long only fails its request."""

log = logging.getLogger(__name__)


class _Sent(NamedTuple):
    """A request without an answer."""

    pending: PendingRequest[dict[str, Any]]
    line: Line
    started: float


class Program:
    """A running process of an upstream's program. Use it in one event loop."""

    def __init__(
        self, launch: Launch, max_line: int, ended: Callable[["Program"], None], *, grace: float = GRACE
    ) -> None:
        """Start the process.

        Args:
            launch: what to start.
            max_line: bytes of a message of the program.
            ended: called once, when the process and its group no longer exist.
            grace: seconds that it has to end, twice.

        Raises:
            UpstreamUnavailable: it cannot be started.
        """
        self._loop = asyncio.get_running_loop()
        self._max_line = max_line
        self._ended = ended
        self._grace = grace
        self._process, self._exit, self._keeper = launch.start()
        self._pipes = [pipe for pipe in (self._process.stdin, self._process.stdout, self._process.stderr) if pipe]
        stdin, self._stdout, stderr = (pipe.fileno() for pipe in self._pipes)
        for descriptor in (stdin, self._stdout, stderr):
            os.set_blocking(descriptor, False)
        self._writer = LineWriter(stdin, self._end_of_pipe)
        self._reader = LineReader(self._stdout, max_line, self._receive, self._receive_ends)
        self._errors = ErrorOutput(stderr, self._log)
        self._not_mcp = LimitedLog(self._log, lines_a_second=1)
        self._unexpected = Allowance(_UNEXPECTED_BURST, _UNEXPECTED_A_SECOND, self._loop.time)
        self._requests: dict[int, _Sent] = {}
        self._last_id = 0
        self._heard = self._loop.time()
        self._stopping: asyncio.Task[None] | None = None
        self._exited = asyncio.Event()
        self.failed = False
        """Whether it ended, or is being ended, for another reason than that it is no longer needed."""
        self._loop.add_reader(self._stdout, self._read)
        self._loop.add_reader(self._exit, self._exit_observed)

    @property
    def pid(self) -> int:
        """The id of the process, and of its process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it accepts requests."""
        return self._stopping is None and not self._exited.is_set()

    async def request(
        self,
        method: str,
        make_params: Callable[[int], Mapping[str, Any]],
        limit: float,
        *,
        notify: Notify | None = None,
        handshake: bool = False,
    ) -> dict[str, Any]:
        """Send a request, and return the `result` of its answer.

        Args:
            method: the JSON-RPC method.
            make_params: returns the parameters for the id of the request, which is also its progress token.
            limit: seconds from the last progress to the answer. The whole request may last ten times as long.
            notify: forwards progress, in order.
            handshake: it is never cancelled (MCP 2025-11-25, "Cancellation"), and the program may ignore it.

        Raises:
            UpstreamUnavailable: the program has read nothing of it.
            OutcomeUnknown: it was sent, and there is no usable answer.
            UpstreamRefused: the answer is an error.
        """
        if not self.running:
            raise UpstreamUnavailable("the program has ended")
        if self._writer.unsent > MAX_UNSENT:
            raise UpstreamUnavailable("the program does not read its standard input")
        self._last_id = request_id = self._last_id + 1
        line = self._writer.write(write_request(request_id, method, make_params(request_id)))
        request = self._requests[request_id] = _Sent(PendingRequest(), line, self._loop.time())
        try:
            return await request.pending.wait(limit, notify)
        except TimeoutError:
            if not request.line.begun:
                raise UpstreamUnavailable("the program does not read its standard input") from None
            if not handshake and self._is_hung(request):
                self._fail("did not answer, and is stopped")
            raise OutcomeUnknown("the program did not answer in time") from None
        finally:
            if self._requests.pop(request_id, None) is not None:
                self._abandon(request_id, request, handshake)

    def notify(self, method: str) -> None:
        """Send a notification without parameters."""
        self._writer.write(write_notification(method))

    def stop(self) -> None:
        """Begin to stop the program. Nothing of its process group remains when `ended` is called."""
        if self.running:
            self._stopping = self._loop.create_task(self._stop())

    async def wait(self) -> None:
        """Return when the process and its group no longer exist, or cannot be killed."""
        if self._stopping is not None:
            await asyncio.shield(self._stopping)
        else:
            await self._exited.wait()

    def _is_hung(self, request: _Sent) -> bool:
        """Tell whether a program that did not answer has done nothing else meanwhile, and nobody else waits for it."""
        return self.running and self._heard <= request.started and len(self._requests) == 1

    def _abandon(self, request_id: int, request: _Sent, handshake: bool) -> None:
        """Do not send a request that nobody waits for any more, or cancel it."""
        if not request.line.begun:
            self._writer.withdraw(request.line)
        elif self.running and not handshake:
            self._send(cancellation(request_id))

    def _send(self, message: bytes) -> None:
        """Send a message that the program may miss if it does not read."""
        if self._writer.unsent <= MAX_UNSENT:
            self._writer.write(message)

    def _read(self) -> None:
        if self._reader.read() == 0:
            self._loop.remove_reader(self._stdout)
            self._end_of_pipe()
        elif self._reader.length > _ENDLESS * self._max_line and self.running:
            self._fail("writes a line without an end, and is stopped")

    def _receive(self, line: bytes) -> None:
        try:
            message = read_message(line)
        except OutcomeUnknown:
            self._receive_other("wrote a line to its standard output that is not an MCP message")
            return
        match message:
            case Answer(request_id) if (request := self._requests.pop(request_id, None)) is not None:
                self._heard = self._loop.time()
                request.pending.end(message.outcome)
            case ProgressNotification(token) if (request := self._requests.get(token)) is not None:
                self._heard = self._loop.time()
                if not request.pending.add_progress((message.progress, message.total, message.message)):
                    self._receive_other()
            case ServerRequest(answer):
                self._receive_other()
                self._send(answer)
            case Answer():
                self._receive_other("answered no request, or a request again, or too late")
            case _:
                self._receive_other()

    def _receive_ends(self, start: bytes, end: bytes) -> None:
        """Fail the request that a line answers which is too long to be read."""
        found = _ID_FIRST.match(start) or _ID_LAST.search(end)
        request = self._requests.pop(int(found[1]), None) if found is not None else None
        if request is None:
            self._receive_other("wrote a line that is too long")
        else:
            request.pending.end(OutcomeUnknown(f"the answer of the program is longer than {self._max_line} bytes"))

    def _receive_other(self, problem: str | None = None) -> None:
        """Count a line that no request waits for."""
        if problem is not None:
            self._not_mcp.add(problem)
        if not self._unexpected.spend() and self.running:
            self._fail("writes too much that answers no request, and is stopped")

    def _log(self, text: str) -> None:
        log.info("program %d: %s", self.pid, text)

    def _end_of_pipe(self) -> None:
        """Stop a program that has closed a pipe. If it exits by itself, the end of its process says more."""
        self.failed = self.failed or self.running
        self.stop()

    def _fail(self, reason: str) -> None:
        """Stop a program that misbehaves. What it writes from now on is not read."""
        log.error("program %d %s", self.pid, reason)
        self.failed = True
        self._loop.remove_reader(self._stdout)
        self._reader.discard()
        self._fail_requests(f"the program {reason}")
        self.stop()

    def _fail_requests(self, reason: str) -> None:
        for request in self._requests.values():
            request.pending.end(OutcomeUnknown(reason) if request.line.begun else UpstreamUnavailable(reason))
        self._requests.clear()

    async def _stop(self) -> None:
        self._writer.close()
        self._pipes[0].close()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self._signal_group(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._grace):
                    await self._exited.wait()
                    return
        log.error("program %d cannot be killed", self.pid)
        self._fail_requests("the program cannot be killed")

    def _signal_group(self, number: signal.Signals) -> None:
        # Once the process is reaped, another one may get its id.
        if not self._exited.is_set():
            with contextlib.suppress(OSError):
                os.killpg(self.pid, number)

    def _exit_observed(self) -> None:
        """Clean up after the end of the process."""
        self._signal_group(signal.SIGKILL)
        status = self._process.wait()
        self._reader.drain(2 * self._max_line)
        self._errors.close()
        self._not_mcp.report()
        self.failed = self.failed or self.running
        reason = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
        if self.failed:
            log.error("program %d %s", self.pid, reason)
        self._fail_requests(f"the program {reason}")
        self._writer.close()
        for descriptor in (self._stdout, self._exit):
            self._loop.remove_reader(descriptor)
        for pipe in self._pipes:
            pipe.close()
        os.close(self._exit)
        os.close(self._keeper)
        self._exited.set()
        self._ended(self)
