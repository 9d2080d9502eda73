"""How a call of an upstream over HTTP ends early: it is cancelled, takes too long, or loses its connection."""

import asyncio
from typing import Any

import anyio
import pytest
from support.http_upstreams import Progressed, refused, running
from support.upstreams import (
    LEGACY,
    MODERN,
    RESULT,
    Received,
    Respond,
    answered,
    call_of,
    events,
    hang,
    hang_up,
    progressed,
    raw,
    scripted_upstream,
    slow_events,
)

from gatehouse.resourceserver.upstream.upstream import OutcomeUnknown

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("begun", [hang, events(progressed(1), end=False), raw(b"HTTP/1.1 200 X\r\n")])
async def test_closing_the_connection_cancels_a_modern_call(begun: Respond) -> None:
    async def unfinished(received: Received, writer: asyncio.StreamWriter) -> None:
        await begun(received, writer)
        await hang(received, writer)

    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", unfinished)
        call = asyncio.create_task(upstream.call_tool(call_of()))
        await server.until("tools/call")
        await anyio.wait_all_tasks_blocked()
        call.cancel()
        with anyio.fail_after(20):
            await server.closed.wait()
        assert not server.of("notifications/cancelled")


@pytest.mark.parametrize("version", [MODERN, LEGACY])
async def test_a_call_in_a_cancelled_scope_is_cancelled(version: str) -> None:
    async with scripted_upstream(version) as server, running(server.url) as upstream:
        server.answer("tools/call", events(progressed(1), end=False))
        async with anyio.create_task_group() as group:
            group.start_soon(upstream.call_tool, call_of())
            await server.until("tools/call")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        with anyio.fail_after(20):
            await server.closed.wait()
        if version == LEGACY:
            await server.until("notifications/cancelled")
        assert await upstream.call_tool(call_of()) == RESULT


async def test_a_notification_cancels_a_legacy_call() -> None:
    async with scripted_upstream(LEGACY) as server, running(server.url) as upstream:
        server.answer("tools/call", hang)
        call = asyncio.create_task(upstream.call_tool(call_of()))
        [sent] = await server.until("tools/call")
        call.cancel()
        [cancelled] = await server.until("notifications/cancelled")
        assert cancelled.body["params"] == {"requestId": sent.body["id"]}


async def test_a_lost_cancellation_has_no_consequence() -> None:
    async with scripted_upstream(LEGACY) as server, running(server.url) as upstream:
        server.answer("tools/call", hang)
        server.answer("notifications/cancelled", hang_up)
        call = asyncio.create_task(upstream.call_tool(call_of()))
        await server.until("tools/call")
        call.cancel()
        await server.until("notifications/cancelled")
        assert await upstream.call_tool(call_of()) == RESULT


@pytest.mark.parametrize("version", [MODERN, LEGACY])
async def test_a_call_without_an_answer_times_out(version: str) -> None:
    async with scripted_upstream(version) as server, running(server.url, timeout=0.5) as upstream:
        server.answer("tools/call", hang)
        failure = await refused(upstream)
        assert isinstance(failure, OutcomeUnknown)
        assert str(failure) == "the upstream did not answer within 0.5 s"
        if version == LEGACY:
            await server.until("notifications/cancelled")


async def test_progress_extends_the_time_of_a_call() -> None:
    async with scripted_upstream() as server, running(server.url, timeout=1) as upstream:
        server.answer("tools/call", slow_events(*map(progressed, range(4)), answered(RESULT), pause=0.3))
        assert await upstream.call_tool(call_of(notify=Progressed())) == RESULT


async def test_a_call_ends_whatever_progress_it_makes() -> None:
    async with scripted_upstream() as server, running(server.url, timeout=0.2) as upstream:
        await upstream.list_tools()
        server.answer("tools/call", slow_events(*map(progressed, range(1000)), pause=0.01))
        assert isinstance(await refused(upstream, notify=Progressed()), OutcomeUnknown)


@pytest.mark.divergence("D-90")
@pytest.mark.parametrize("breaks", [hang_up, events(progressed(1))])
async def test_a_connection_that_ends_early_leaves_the_outcome_unknown(breaks: Any) -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", breaks)
        assert isinstance(await refused(upstream), OutcomeUnknown)
        assert len(server.of("tools/call")) == 1
