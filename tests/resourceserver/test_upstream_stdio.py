"""Upstreams that are programs: the version that they speak, one process for each caller, and when processes end."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from support import programs
from support.clock import FakeClock
from support.programs import exists, make_call, members, running, until

from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy
from gatehouse.resourceserver.upstream.stdio.stdio_upstream import StdioUpstream
from gatehouse.resourceserver.upstream.upstream import (
    OutcomeUnknown,
    UpstreamBusy,
    UpstreamRefused,
    UpstreamUnavailable,
)

pytestmark = pytest.mark.anyio

SDK = (sys.executable, str(Path(programs.__file__).with_name("sdk_program.py")))


async def pid_of(upstream: StdioUpstream, caller: str = "alice") -> int:
    result = await upstream.call_tool(make_call("describe", caller))
    pid: int = result["structuredContent"]["pid"]
    return pid


async def received(upstream: StdioUpstream, caller: str = "alice") -> list[dict[str, Any]]:
    result = await upstream.call_tool(make_call("received", caller))
    messages: list[dict[str, Any]] = result["structuredContent"]["received"]
    return messages


@pytest.fixture
async def upstream(anyio_backend: str) -> AsyncIterator[StdioUpstream]:
    async with running() as upstream:
        yield upstream


# Versions


async def test_the_current_version_is_spoken_without_a_handshake(upstream: StdioUpstream) -> None:
    discover, call = await received(upstream)
    assert discover["method"] == "server/discover"
    for message in (discover, call):
        meta = message["params"]["_meta"]
        assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
        assert meta["io.modelcontextprotocol/clientInfo"]["name"] == "gatehouse"
        assert meta["io.modelcontextprotocol/clientCapabilities"] == {}


async def test_an_older_program_gets_its_handshake(upstream: StdioUpstream) -> None:
    async with running("legacy") as older:
        first = await received(older)
        assert [message["method"] for message in first] == [
            "server/discover",
            "initialize",
            "notifications/initialized",
            "tools/call",
        ]
        assert first[1]["params"]["protocolVersion"] == "2025-11-25"
        assert "_meta" not in first[3]["params"]
        again = await received(older, "bob")
        assert again[0]["method"] == "initialize", "what the first process spoke is remembered"
        assert [tool["name"] for tool in await older.list_tools()] == ["tool0", "tool1"]


async def test_a_program_that_ignores_the_probe_gets_its_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatehouse.resourceserver.upstream.stdio.stdio_upstream._PROBE_LIMIT", 0.05)
    async with running("silent", "legacy") as upstream:
        assert [message["method"] for message in await received(upstream)][1] == "initialize"


async def test_a_slow_start_is_not_mistaken_for_an_older_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatehouse.resourceserver.upstream.stdio.stdio_upstream._PROBE_LIMIT", 0.05)
    async with running("silent", "refuse-initialize") as upstream:
        methods = [message["method"] for message in await received(upstream)]
        assert methods == ["server/discover", "initialize", "server/discover", "tools/call"]
        assert "_meta" in (await received(upstream))[-1]["params"]


async def test_a_program_that_ends_at_the_probe_is_started_for_its_handshake() -> None:
    async with running("die-at-probe") as upstream:
        assert (await received(upstream))[0]["method"] == "initialize"


async def test_a_program_without_a_common_version_is_unavailable() -> None:
    async with running("no-version") as upstream:
        with pytest.raises(UpstreamUnavailable, match="supports none of the MCP versions 2026-07-28, 2025-11-25"):
            await pid_of(upstream)
    async with running("legacy", "refuse-initialize") as upstream:
        with pytest.raises(UpstreamUnavailable, match=r"the program did not start: .* -32022"):
            await pid_of(upstream)


async def test_a_program_that_does_not_answer_is_stopped() -> None:
    async with running("mute", timeout=0.2) as upstream:
        with pytest.raises(UpstreamUnavailable, match=r"the program did not start: .*did not answer in time"):
            await pid_of(upstream)


@pytest.mark.parametrize("era", ["", "legacy"])
async def test_servers_of_the_sdk_list_and_call_with_progress(era: str) -> None:
    seen: list[Any] = []

    async def notify(*progress: Any) -> None:
        seen.append(progress)

    async with running(*era.split(), command=SDK) as upstream:
        assert [tool["name"] for tool in await upstream.list_tools()] == ["add", "count"]
        result = await upstream.call_tool(make_call("add", a=2, b=3))
        assert result["structuredContent"] == {"result": 5}
        result = await upstream.call_tool(make_call("count", notify=notify))
        assert result["content"] == [{"type": "text", "text": "counted"}]
        assert seen == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]


async def test_meta_of_a_call_is_passed_on(upstream: StdioUpstream) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    result = await upstream.call_tool(make_call("echo", meta=trace, text="é"))
    sent = result["structuredContent"]
    assert sent["arguments"] == {"text": "é"}
    assert sent["_meta"]["traceparent"] == trace["traceparent"]
    assert "progressToken" not in sent["_meta"]


# Sessions


@pytest.mark.threat("T-173")
async def test_callers_never_share_a_program(upstream: StdioUpstream) -> None:
    callers = [f"caller{number}" for number in range(5)]
    pids: dict[str, set[int]] = {caller: set() for caller in callers}

    async def use(caller: str) -> None:
        pids[caller].add(await pid_of(upstream, caller))

    async with anyio.create_task_group() as tasks:
        for caller in callers * 3:
            tasks.start_soon(use, caller)
    assert all(len(of_caller) == 1 for of_caller in pids.values())
    assert len(set.union(*pids.values())) == 5
    await upstream.list_tools()


async def test_a_hundred_callers_use_one_shared_program() -> None:
    pids = set()
    async with running(shared=True, max_sessions=1) as upstream:
        await upstream.list_tools()

        async def use(caller: str) -> None:
            result = await upstream.call_tool(make_call("echo", caller, me=caller))
            assert result["structuredContent"]["arguments"] == {"me": caller}
            pids.add(await pid_of(upstream, caller))

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(use, f"caller{number}")
    assert len(pids) == 1


async def test_the_session_that_was_not_used_longest_ends_for_another() -> None:
    clock = FakeClock()
    async with running(max_sessions=2, monotonic=clock) as upstream:
        first = await pid_of(upstream, "alice")
        clock.advance(1)
        await pid_of(upstream, "bob")
        clock.advance(1)
        assert await pid_of(upstream, "alice") == first
        await pid_of(upstream, "carol")
        clock.advance(1)
        assert await pid_of(upstream, "alice") == first, "bob's has ended"


async def test_no_session_in_use_ends_for_another() -> None:
    async with running(max_sessions=1) as upstream:
        pid = await pid_of(upstream)
        waiting = asyncio.create_task(upstream.call_tool(make_call("wait")))
        await anyio.lowlevel.checkpoint()
        with pytest.raises(UpstreamBusy, match="all 1 sessions of the upstream are in use"):
            await pid_of(upstream, "bob")
        await upstream.list_tools()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert await pid_of(upstream) == pid
        assert await pid_of(upstream, "bob") != pid


async def test_no_more_programs_run_at_once_than_allowed() -> None:
    async with running("keep", max_sessions=1) as upstream:
        await upstream.list_tools()
        first = await pid_of(upstream)
        second = await pid_of(upstream, "bob")
        assert not exists(first), "its end was awaited"
        assert exists(second)


async def test_idle_sessions_end() -> None:
    clock = FakeClock()
    async with running(idle_timeout=0.05, monotonic=clock) as upstream:
        idle, busy = await pid_of(upstream), await pid_of(upstream, "bob")
        waiting = asyncio.create_task(upstream.call_tool(make_call("wait", "bob")))
        await anyio.lowlevel.checkpoint()
        clock.advance(1)
        await until(lambda: members(idle) == [])
        assert members(busy)
        assert await pid_of(upstream) != idle
        waiting.cancel()


async def test_all_programs_end_with_the_upstream() -> None:
    async with running("keep") as upstream:
        pids = [await pid_of(upstream, caller) for caller in ("alice", "bob")]
        waiting = asyncio.create_task(upstream.call_tool(make_call("wait")))
        await anyio.lowlevel.checkpoint()
    await until(lambda: [members(pid) for pid in pids] == [[], []])
    with pytest.raises(OutcomeUnknown):
        await waiting
    with pytest.raises(UpstreamUnavailable, match="the gateway is being stopped"):
        await pid_of(upstream)


async def test_a_start_ends_with_the_upstream() -> None:
    async with running("mute") as upstream:
        starting = [asyncio.create_task(pid_of(upstream, caller)) for caller in ("alice", "bob")]
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
    for start in starting:
        with pytest.raises(UpstreamUnavailable, match="the program did not start"):
            await start


async def test_a_cancelled_caller_does_not_end_the_start_for_others(upstream: StdioUpstream) -> None:
    cancelled = asyncio.create_task(pid_of(upstream))
    await anyio.lowlevel.checkpoint()
    other = asyncio.create_task(pid_of(upstream))
    await anyio.lowlevel.checkpoint()
    cancelled.cancel()
    assert await other


# Failures


async def test_a_program_that_died_is_started_again_after_a_pause() -> None:
    clock = FakeClock()
    async with running(monotonic=clock) as upstream:
        first = await pid_of(upstream)
        bobs = await pid_of(upstream, "bob")
        waiting = asyncio.create_task(upstream.call_tool(make_call("wait")))
        await anyio.lowlevel.checkpoint()
        for call in (upstream.call_tool(make_call("die")), waiting):
            with pytest.raises(OutcomeUnknown, match="the program ended with status 3"):
                await call
        with pytest.raises(UpstreamUnavailable, match="is not started again for 1 s"):
            await pid_of(upstream)
        assert await pid_of(upstream, "bob") == bobs
        assert await pid_of(upstream, "carol"), "others are not affected"
        clock.advance(1)
        assert await pid_of(upstream) != first
        with pytest.raises(OutcomeUnknown):
            await upstream.call_tool(make_call("die"))
        with pytest.raises(UpstreamUnavailable, match="is not started again for 2 s"):
            await pid_of(upstream)
        clock.advance(1000)
        upstream.end_idle()
        assert await pid_of(upstream)


async def test_a_program_that_does_not_start_is_not_started_for_others_either() -> None:
    clock = FakeClock()
    async with running(command=("/absent/program",), monotonic=clock) as upstream:
        with pytest.raises(UpstreamUnavailable, match="the program did not start: the program ended with status 1"):
            await pid_of(upstream)
        with pytest.raises(UpstreamUnavailable, match="is not started again for 1 s"):
            await pid_of(upstream, "bob")
        clock.advance(1)
        with pytest.raises(UpstreamUnavailable, match="the program did not start"):
            await pid_of(upstream, "bob")


async def test_an_error_of_the_program_is_passed_on_as_its_code() -> None:
    async with running() as upstream:
        with pytest.raises(UpstreamRefused, match="-32000"):
            await upstream.call_tool(
                make_call("raw", text='{"jsonrpc":"2.0","id":ID,"error":{"code":-32000,"message":"secret"}}\n')
            )


async def test_an_impossible_user_is_refused_before_any_call() -> None:
    with pytest.raises(InvalidPolicy, match=r"upstream\.user"):
        async with running(user="no-such-user"):
            pass
