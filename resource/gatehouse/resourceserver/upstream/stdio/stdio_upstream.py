"""An upstream that is a program, and speaks MCP over its standard input and output.

Each caller has a process of its own, because a program may keep something of its callers, unless the policy says that
it does not. This class starts the processes as children of the process that uses it; `owner_server.py` lets several
workers use the same ones.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio

from gatehouse.resourceserver.catalogue.policy_file import UpstreamSettings
from gatehouse.resourceserver.upstream.messages import (
    MODERN_VERSION,
    call_params,
    initialize_params,
    is_modern,
    modern_params,
    negotiated_version,
)
from gatehouse.resourceserver.upstream.stdio.launch import prepare_launch, program_variables, stdio_transport
from gatehouse.resourceserver.upstream.stdio.program import GRACE, Program
from gatehouse.resourceserver.upstream.stdio.throttles import Backoff
from gatehouse.resourceserver.upstream.tool_list import collect_tools
from gatehouse.resourceserver.upstream.upstream import (
    Caller,
    ToolCall,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)

_PROBE_LIMIT: Final = 10.0
"""Seconds that a program has to answer `server/discover`, at most half of the timeout. Some ignore what they do not
know."""

_SWEEP: Final = 10.0
"""Seconds between two searches for idle sessions, at most the idle timeout."""

_Key = Caller | None
"""Of a session: its caller. None for the session of the gateway itself, and of all callers of a shared program."""


class _EndedAtProbe(Exception):
    """A program ended instead of answering `server/discover`."""


class _Session:
    """A program that is started when it is needed, and its calls."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.backoff = Backoff(monotonic)
        self.calls = 0
        self.used = monotonic()
        self.program: Program | None = None
        self.version = MODERN_VERSION
        self.starting: asyncio.Task[Program] | None = None

    @property
    def idle(self) -> bool:
        return self.calls == 0 and self.starting is None


class StdioUpstream:
    """An upstream over programs that are children of this process. Use it in one event loop."""

    def __init__(
        self,
        settings: UpstreamSettings,
        variables: Mapping[str, str] = os.environ,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        grace: float = GRACE,
    ) -> None:
        """Prepare the upstream, and start nothing.

        Args:
            settings: the programs, and the bounds of what they may do.
            variables: where those that the policy names come from.
            monotonic: a clock for idle sessions and for the pauses between starts.
            grace: seconds that a program has to end, twice.

        Raises:
            InvalidPolicy: the programs cannot run as the user that the policy names.
        """
        transport = stdio_transport(settings)
        self._launch = prepare_launch(transport, program_variables(transport, variables))
        self._settings = settings
        self._shared = transport.shared
        self._monotonic = monotonic
        self._grace = grace
        self._sessions: dict[_Key, _Session] = {}
        self._programs: dict[Program, _Session] = {}
        self._max_programs = 1 if self._shared else settings.max_sessions + 1
        self._freed = asyncio.Event()
        self._starts = Backoff(monotonic)
        self._legacy = False
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Return the context in which the upstream can be used. At its end, all programs end."""
        sweeping = asyncio.create_task(self._end_idle_regularly())
        try:
            yield
        finally:
            sweeping.cancel()
            with anyio.CancelScope(shield=True):
                await self._close()

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return all tools, of every page, as the upstream describes them. Raises UpstreamError."""
        async with self._use(None) as (program, version):

            async def list_page(params: dict[str, Any]) -> dict[str, Any]:
                sent = modern_params(params) if version == MODERN_VERSION else params
                return await program.request("tools/list", lambda _: sent, self._settings.timeout)

            return await collect_tools(list_page)

    async def call_tool(self, call: ToolCall) -> dict[str, Any]:
        """Call a tool in the caller's session, and return the `result` of the answer, not yet validated.

        If the task is cancelled, the program is told to stop.

        Raises:
            UpstreamBusy: as many sessions as the policy allows are in use by other callers.
            UpstreamUnavailable: the program does not start, or failed a moment ago; nothing was executed.
            OutcomeUnknown: the program ended during the call, or did not answer in time.
            UpstreamRefused: it answered with an error.
        """
        async with self._use(call.caller) as (program, version):
            params = partial(call_params, call, version)
            return await program.request("tools/call", params, self._settings.timeout, notify=call.notify)

    def end_idle(self) -> None:
        """End the sessions that were not used for the idle timeout."""
        oldest = self._monotonic() - self._settings.idle_timeout
        for key in [key for key, session in self._sessions.items() if session.idle and session.used <= oldest]:
            self._end(key)

    @asynccontextmanager
    async def _use(self, key: _Key) -> AsyncIterator[tuple[Program, str]]:
        """Yield the program of a session, and the protocol version that it speaks."""
        session = self._session(None if self._shared else key)
        session.calls += 1
        try:
            program = await self._program(session)
            yield program, session.version
        finally:
            session.calls -= 1
            session.used = self._monotonic()

    def _session(self, key: _Key) -> _Session:
        if (session := self._sessions.get(key)) is None:
            if key is not None:
                self._make_room()
            session = self._sessions[key] = _Session(self._monotonic)
        return session

    def _make_room(self) -> None:
        """End the idle session that was not used for the longest time, if there are as many as allowed."""
        of_callers = {key: session for key, session in self._sessions.items() if key is not None}
        if len(of_callers) < self._settings.max_sessions:
            return
        idle = [key for key, session in of_callers.items() if session.idle]
        if not idle:
            raise UpstreamBusy(f"all {self._settings.max_sessions} sessions of the upstream are in use")
        self._end(min(idle, key=lambda key: of_callers[key].used))

    def _end(self, key: _Key) -> None:
        session = self._sessions.pop(key)
        if session.program is not None:
            session.program.stop()

    async def _program(self, session: _Session) -> Program:
        """Return the program of a session. Its callers wait together if it is being started."""
        if session.program is not None and session.program.running:
            return session.program
        if session.starting is None:
            # Any caller can make its own program fail, but not prevent the start of others.
            self._starts.check()
            session.backoff.check()
            session.starting = asyncio.create_task(self._start(session))
        return await asyncio.shield(session.starting)

    async def _start(self, session: _Session) -> Program:
        try:
            async with asyncio.timeout(self._settings.timeout):
                program = await self._open(session)
        except (UpstreamError, TimeoutError) as error:
            self._starts.fail()
            self._legacy = False
            reason = str(error) or "it did not answer in time"
            raise UpstreamUnavailable(f"the program did not start: {reason}") from None
        finally:
            session.starting = None
        self._starts.succeed()
        session.program = program
        return program

    async def _open(self, session: _Session) -> Program:
        try:
            return await self._open_once(session)
        except _EndedAtProbe:
            # As a program may that expects `initialize` before anything else.
            self._legacy = True
            return await self._open_once(session)

    async def _open_once(self, session: _Session) -> Program:
        # Programs that were told to stop still count.
        while len(self._programs) >= self._max_programs:
            self._freed.clear()
            await self._freed.wait()
        if self._closed:
            raise UpstreamUnavailable("the gateway is being stopped")
        program = Program(self._launch, self._settings.max_result, self._forget, grace=self._grace)
        self._programs[program] = session
        try:
            session.version = await self._negotiate(program)
        except BaseException:
            program.stop()
            raise
        return program

    async def _negotiate(self, program: Program) -> str:
        """Return the protocol version that a program speaks (MCP 2026-07-28, "Protocol Version Negotiation").

        Raises:
            UpstreamError: it speaks no version that the gateway speaks, or does not answer.
            _EndedAtProbe: it ended before `initialize` was sent.
        """
        limit = self._settings.timeout
        if not self._legacy:
            if await self._discover(program, min(_PROBE_LIMIT, limit / 2)):
                return MODERN_VERSION
            if not program.running:
                raise _EndedAtProbe
        try:
            result = await program.request("initialize", lambda _: initialize_params(), limit, handshake=True)
        except UpstreamRefused:
            # So does a program of 2026-07-28 that took longer for its start than the first request had time.
            if await self._discover(program, limit):
                self._legacy = False
                return MODERN_VERSION
            raise
        version = negotiated_version(result)
        program.notify("notifications/initialized")
        self._legacy = True
        return version

    async def _discover(self, program: Program, limit: float) -> bool:
        """Tell whether a program speaks 2026-07-28."""
        try:
            return is_modern(
                await program.request("server/discover", lambda _: modern_params({}), limit, handshake=True)
            )
        except UpstreamError:
            return False

    def _forget(self, program: Program) -> None:
        """Note that a program has ended."""
        session = self._programs.pop(program)
        self._freed.set()
        if session.program is program:
            session.program = None
            if program.failed:
                session.backoff.fail()

    async def _end_idle_regularly(self) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP, self._settings.idle_timeout))
            self.end_idle()

    async def _close(self) -> None:
        self._closed = True
        starts = [session.starting for session in self._sessions.values() if session.starting is not None]
        programs = list(self._programs)
        for program in programs:
            program.stop()
        for program in programs:
            await program.wait()
        # They fail, because their programs have ended, or because none is started any more.
        await asyncio.gather(*starts, return_exceptions=True)
