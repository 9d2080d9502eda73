"""Keeps the catalogue of a worker as its policy and its upstream say, while both change."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from pydantic import ValidationError

from gatehouse.resourceserver.catalogue import Catalogue, Tool
from gatehouse.resourceserver.catalogue.policy_file import PolicyFile, StdioTransport, UpstreamSettings
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.upstream.caller_identity import caller_meta
from gatehouse.resourceserver.upstream.drift import ToolState, compare, withheld_reason
from gatehouse.resourceserver.upstream.forwarding import Describe, forwarded_tool
from gatehouse.resourceserver.upstream.policy_watch import PolicyWatch
from gatehouse.resourceserver.upstream.upstream import ToolCall, Upstream, UpstreamError
from gatehouse.shared.protocol.encoding import compact_json

WATCH_INTERVAL: Final = 1.0
"""Seconds between two checks of the accepted policy."""

_NAME: Final = "gateway"
"""The name of a server whose policy has none."""

_RETRY: Final = 0.5
"""Seconds after which the first list is requested again if it failed, and twice as long after each further failure."""

NOT_LISTED: Final = "the upstream has not listed its tools yet; see the log of the server"
"""Why a tool is withheld before the first list."""

Open = Callable[[UpstreamSettings], Upstream]
Report = Callable[[Mapping[str, ToolState]], None]
"""Called with the state of every tool after each list that the upstream gave."""

log = logging.getLogger(__name__)


class OpenUpstream:
    """An upstream in use. It is closed once it is replaced, and its last call has ended."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._calls = 0
        self._changed = anyio.Event()
        self._replaced = False

    async def run(self) -> None:
        """Keep the upstream open until it is replaced and unused."""
        try:
            async with self._upstream.running():
                while self._calls or not self._replaced:
                    await self._changed.wait()
                    self._changed = anyio.Event()
        except Exception:
            # The server goes on: its calls fail, and other tasks of the process do not.
            log.exception("the client of the upstream failed")

    def replace(self) -> None:
        """Close the upstream after its last call."""
        self._replaced = True
        self._changed.set()

    @asynccontextmanager
    async def _in_use(self) -> AsyncIterator[Upstream]:
        self._calls += 1
        try:
            yield self._upstream
        finally:
            self._calls -= 1
            self._changed.set()

    async def list_tools(self) -> list[dict[str, Any]]:
        """List the tools. Raises UpstreamError."""
        async with self._in_use() as upstream:
            return await upstream.list_tools()

    async def call_tool(self, call: ToolCall) -> dict[str, Any]:
        """Call a tool. Raises UpstreamError."""
        async with self._in_use() as upstream:
            return await upstream.call_tool(call)


class ServedUpstream:
    """The upstream of a worker, and the catalogue that it fills."""

    def __init__(
        self, watch: PolicyWatch, open_: Open, catalogue: Catalogue, report: Report, poll_interval: float
    ) -> None:
        """Create it; `run` does the work.

        Args:
            watch: the accepted policy.
            open_: opens an upstream.
            catalogue: the catalogue that the server serves, and that is replaced whenever something changes.
            report: receives the state of the tools.
            poll_interval: seconds between two lists of the upstream's tools.
        """
        self._watch = watch
        self._open = open_
        self._catalogue = catalogue
        self._report = report
        self._poll_interval = poll_interval
        self._accepted = watch.newest()
        self._current: OpenUpstream | None = None
        self._listed: Sequence[Mapping[str, Any]] | None = None
        self._states: Mapping[str, ToolState] = {}
        self._renewing = anyio.Lock()

    async def run(self) -> None:
        """Follow the policy and the upstream until the task is cancelled."""
        async with anyio.create_task_group() as tasks:
            polling = self._use(tasks)
            while True:
                await anyio.sleep(WATCH_INTERVAL)
                # In a thread: a large policy, or one with many patterns, takes a moment.
                accepted = await anyio.to_thread.run_sync(self._watch.newest)
                if accepted.version == self._accepted.version:
                    continue
                before, self._accepted = self._accepted.policy.upstream, accepted
                previous = self._current
                if accepted.policy.upstream != before:
                    polling.cancel()
                    if accepted.policy.upstream.transport != before.transport:
                        self._listed = None
                    polling = self._use(tasks)
                await self._renew()
                if previous is not None and previous is not self._current:
                    # Until now, calls began with it.
                    previous.replace()

    def _use(self, tasks: TaskGroup) -> anyio.CancelScope:
        """Open the upstream of the policy. Return what ends the polling of its tools."""
        opened = self._current = OpenUpstream(self._open(self._accepted.policy.upstream))
        polling = anyio.CancelScope()
        tasks.start_soon(opened.run)
        tasks.start_soon(self._poll, opened, polling)
        return polling

    async def _poll(self, upstream: OpenUpstream, scope: anyio.CancelScope) -> None:
        pause = _RETRY
        with scope:
            while True:
                try:
                    listed = await upstream.list_tools()
                except UpstreamError as error:
                    log.warning("the upstream did not list its tools: %s", error)
                except Exception:
                    log.exception("the upstream did not list its tools")
                else:
                    await self._use_list(upstream, listed)
                await anyio.sleep(self._poll_interval if self._listed is not None else min(pause, self._poll_interval))
                pause *= 2

    async def _use_list(self, upstream: OpenUpstream, listed: Sequence[Mapping[str, Any]]) -> None:
        if upstream is not self._current:
            # It was replaced while its list arrived.
            return
        # To Python, 1 equals true and 1.0.
        if listed != self._listed or compact_json(listed) != compact_json(self._listed):
            self._listed = listed
            await self._renew()
        self._report(self._states)

    async def _renew(self) -> None:
        """Serve what the policy and the last list allow."""
        async with self._renewing:
            policy, listed, upstream = self._accepted.policy, self._listed, self._current
            if listed is None or upstream is None:
                catalogue, states = unlisted_catalogue(policy), dict[str, ToolState]()
            else:
                # In a thread: the digests of a thousand tools take a moment.
                catalogue, states = await anyio.to_thread.run_sync(_listed_catalogue, policy, listed, upstream)
            _log_changes(policy, self._states, states)
            self._states = states
            self._catalogue.adopt(catalogue)


def _log_changes(policy: PolicyFile, before: Mapping[str, ToolState], after: Mapping[str, ToolState]) -> None:
    """Log the tools of the policy by name, and the number of others, whose names are the upstream's."""
    served = Counter(after.values())[ToolState.SERVED]
    if not before:
        log.info("the upstream listed its tools: %d of the policy's %d are served", served, len(policy.tools))
    for name in policy.tools:
        expected = before.get(name, ToolState.SERVED)
        if name in after and expected != after[name]:
            reason = withheld_reason(name, after[name])
            log.log(logging.INFO if reason is None else logging.WARNING, "tool %s: %s", name, reason or after[name])
    new = {name for name, state in after.items() if state is ToolState.NEW}
    if not new <= before.keys():
        log.warning(
            "the policy does not mention %d of the upstream's tools; run: resourceserver policy check", len(new)
        )


def unlisted_catalogue(policy: PolicyFile) -> Catalogue:
    """Return the catalogue of a policy whose upstream has not listed its tools yet. All are withheld.

    Raises:
        InvalidCatalogue: the scopes of the policy cannot be served.
    """
    return _catalogue(policy, (), dict.fromkeys(policy.tools, NOT_LISTED))


def _listed_catalogue(
    policy: PolicyFile, listed: Sequence[Mapping[str, Any]], upstream: OpenUpstream
) -> tuple[Catalogue, dict[str, ToolState]]:
    """Return the catalogue that serves the confirmed tools, and the state of every tool.

    Args:
        policy: the policy.
        listed: the tools as the upstream lists them.
        upstream: where calls go.
    """
    states = compare(policy, listed)
    by_name = {tool["name"]: tool for tool in listed}
    tools: list[Tool] = []
    for name, state in states.items():
        if state is ToolState.SERVED and (tool := _usable(policy, by_name[name], upstream)) is not None:
            tools.append(tool)
        elif state is ToolState.SERVED:
            states[name] = ToolState.UNUSABLE
    reasons = {name: withheld_reason(name, states[name]) for name in policy.tools}
    withheld = {name: reason for name, reason in reasons.items() if reason is not None}
    return _catalogue(policy, tools, withheld), states


def _usable(policy: PolicyFile, listed: Mapping[str, Any], upstream: OpenUpstream) -> Tool | None:
    """Return a tool of the upstream; None if its description cannot be served."""
    try:
        tool = forwarded_tool(policy.tools[listed["name"]], listed, upstream.call_tool, _describe(policy.upstream))
        _catalogue(policy, [tool], {})
    except (ValidationError, InvalidCatalogue):
        return None
    return tool


def _describe(upstream: UpstreamSettings) -> Describe:
    """Return what tells a program who calls. An HTTP server gets a header instead."""
    if upstream.caller_identity and isinstance(upstream.transport, StdioTransport):
        return caller_meta
    return lambda _: {}


def _catalogue(policy: PolicyFile, tools: Sequence[Tool], withheld: Mapping[str, str]) -> Catalogue:
    return Catalogue(
        policy.name or _NAME,
        policy.scopes.values(),
        groups=(),
        instructions=policy.instructions,
        forwarded=tools,
        withheld=withheld,
    )
