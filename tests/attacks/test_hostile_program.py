"""An upstream's program that does what it should not.

OWASP MCP03 (tool poisoning) and MCP04 (supply chain): the publisher of the program of an upstream controls all that it
writes. Each test first gets a faultless answer from the same program.
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from support.programs import kill, make_call, members, running, until

from gatehouse.resourceserver.upstream.stdio import program as program_module
from gatehouse.resourceserver.upstream.stdio.stdio_upstream import StdioUpstream
from gatehouse.resourceserver.upstream.upstream import OutcomeUnknown, UpstreamUnavailable

pytestmark = pytest.mark.anyio

MAX_RESULT = 2000
SECRET = "secret-of-the-program"
FINE = '{"jsonrpc":"2.0","id":ID,"result":{"content":[]}}\n'


@pytest.fixture
async def upstream(anyio_backend: str) -> AsyncIterator[StdioUpstream]:
    async with running(max_result=MAX_RESULT) as upstream:
        result = await upstream.call_tool(make_call("echo"))
        assert result["structuredContent"]["name"] == "echo"
        yield upstream


async def pid_of(upstream: StdioUpstream, caller: str = "alice") -> int:
    pid: int = (await upstream.call_tool(make_call("describe", caller)))["structuredContent"]["pid"]
    return pid


UNUSABLE = {
    "not JSON": SECRET,
    "an array": "[" + FINE.strip() + "]",
    "a duplicate member": '{"jsonrpc":"2.0","id":ID,"result":{"a":1,"a":2}}',
    "a duplicate id": '{"jsonrpc":"2.0","id":1,"id":ID,"result":{}}',
    "NaN": '{"jsonrpc":"2.0","id":ID,"result":{"a":NaN}}',
    "not UTF-8": '{"jsonrpc":"2.0","id":ID,"result":{"a":"\xff"}}',
    "another id": '{"jsonrpc":"2.0","id":4711,"result":{}}',
    "the id as a string": '{"jsonrpc":"2.0","id":"ID","result":{}}',
    "the id as a fraction": '{"jsonrpc":"2.0","id":ID.0,"result":{}}',
    "true as the id": '{"jsonrpc":"2.0","id":true,"result":{}}',
    "no id": '{"jsonrpc":"2.0","result":{}}',
    "result and error": '{"jsonrpc":"2.0","id":ID,"result":{},"error":{"code":1,"message":""}}',
    "a request": '{"jsonrpc":"2.0","id":ID,"method":"sampling/createMessage","params":{},"result":{}}',
    "another version": '{"jsonrpc":"1.0","id":ID,"result":{}}',
    "nested too deeply": '{"jsonrpc":"2.0","id":ID,"result":' + "[" * 300 + "]" * 300 + "}",
    "empty lines": "\n\n\n",
    "progress of another call": '{"jsonrpc":"2.0","method":"notifications/progress",'
    '"params":{"progressToken":99,"progress":1}}',
    "a line that is too long": "x" * (3 * MAX_RESULT),
}


@pytest.mark.threat("T-170")
@pytest.mark.parametrize("kind", UNUSABLE)
async def test_only_a_faultless_answer_counts(
    upstream: StdioUpstream, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    answer = await upstream.call_tool(make_call("raw", text=f"{UNUSABLE[kind]}\n{FINE}"))
    assert answer == {"content": []}
    assert SECRET not in caplog.text
    assert (await upstream.call_tool(make_call("echo")))["structuredContent"]["name"] == "echo"


@pytest.mark.threat("T-170")
@pytest.mark.parametrize(
    "result",
    ['"text"', "[]", "null", '{"resultType":"input_required","inputRequests":{}}', '{"resultType":"task"}'],
)
async def test_other_results_than_those_of_a_call_are_refused(upstream: StdioUpstream, result: str) -> None:
    with pytest.raises(OutcomeUnknown):
        await upstream.call_tool(make_call("raw", text=f'{{"jsonrpc":"2.0","id":ID,"result":{result}}}\n'))


@pytest.mark.threat("T-170")
async def test_a_second_answer_is_ignored(upstream: StdioUpstream) -> None:
    second = '{"jsonrpc":"2.0","id":ID,"result":{"second":1}}\n'
    assert await upstream.call_tool(make_call("raw", text=FINE + second)) == {"content": []}
    assert (await upstream.call_tool(make_call("echo")))["structuredContent"]["name"] == "echo"


@pytest.mark.threat("T-173")
async def test_an_answer_cannot_reach_another_call(upstream: StdioUpstream) -> None:
    """The program answers the caller's other call, which waits, and both see only their own answer."""
    results: dict[str, Any] = {}

    async def wait() -> None:
        results["waiting"] = await upstream.call_tool(make_call("wait"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        # The first two requests are the probe and the fixture's call.
        text = '{"jsonrpc":"2.0","id":3,"result":{"of":3}}\n' + FINE
        assert await upstream.call_tool(make_call("raw", text=text)) == {"content": []}
    assert results == {"waiting": {"of": 3}}
    bob = await pid_of(upstream, "bob")
    assert bob != await pid_of(upstream), "no program can answer the calls of another caller's"


@pytest.mark.threat("T-170")
@pytest.mark.parametrize("line", ["garbage", '{"jsonrpc":"2.0","method":"notifications/message","params":{}}', ""])
async def test_a_flood_of_lines_ends_the_program(upstream: StdioUpstream, line: str) -> None:
    pid = await pid_of(upstream)
    with pytest.raises(OutcomeUnknown, match="writes too much that answers no request"):
        await upstream.call_tool(make_call("raw", text=line + "\n", times=50_000))
    assert await pid_of(upstream, "bob")
    await until(lambda: members(pid) == [])


@pytest.mark.threat("T-170")
async def test_a_flood_of_progress_for_a_slow_caller_ends_the_program(upstream: StdioUpstream) -> None:
    async def never(*_: Any) -> None:
        await anyio.sleep_forever()

    pid = await pid_of(upstream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upstream.call_tool, make_call("count", notify=never, steps=100_000))
        await until(lambda: members(pid) == [])
        tasks.cancel_scope.cancel()


@pytest.mark.threat("T-170")
async def test_a_line_without_an_end_ends_the_program(upstream: StdioUpstream) -> None:
    with pytest.raises(OutcomeUnknown, match="writes a line without an end"):
        await upstream.call_tool(make_call("raw", text="x" * 1000, times=10_000))


@pytest.mark.threat("T-170")
async def test_a_flood_of_standard_error_delays_no_other_caller(
    upstream: StdioUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upstream.call_tool, make_call("complain", text="\x1b[2J spam\n", times=300_000))
        await anyio.lowlevel.checkpoint()
        for _ in range(20):
            assert await pid_of(upstream, "bob")
        tasks.cancel_scope.cancel()
    assert "\x1b" not in caplog.text
    assert len(caplog.records) < 10_000, "of 300,000"


@pytest.mark.threat("T-172")
async def test_a_process_that_keeps_the_pipes_open_delays_no_failure(upstream: StdioUpstream) -> None:
    pid = await pid_of(upstream)
    with pytest.raises(OutcomeUnknown, match="the program ended with status 3"):
        await upstream.call_tool(make_call("fork and die"))
    await until(lambda: members(pid) == [])


@pytest.mark.threat("T-172")
async def test_a_process_that_left_the_group_holds_no_call(upstream: StdioUpstream) -> None:
    forked = await upstream.call_tool(make_call("fork", leave=True))
    pid = forked["structuredContent"]["pid"]
    with pytest.raises(OutcomeUnknown, match="the program ended with status 3"):
        await upstream.call_tool(make_call("die"))
    kill(pid)


@pytest.mark.threat("T-170")
async def test_a_program_that_never_reads_blocks_nobody(
    upstream: StdioUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_module, "MAX_UNSENT", 200_000)
    await upstream.call_tool(make_call("read no more"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upstream.call_tool, make_call("echo", text="x" * 300_000))
        await anyio.lowlevel.checkpoint()
        with pytest.raises(UpstreamUnavailable, match="does not read its standard input"):
            await upstream.call_tool(make_call("echo"))
        assert await pid_of(upstream, "bob")
        tasks.cancel_scope.cancel()


@pytest.mark.threat("T-171")
async def test_the_program_sees_no_secret_of_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESOURCESERVER_SEALING_KEY", SECRET)
    source, sink = os.pipe()
    os.set_inheritable(source, True)
    async with running() as upstream:
        seen = (await upstream.call_tool(make_call("describe")))["structuredContent"]
    os.close(source)
    os.close(sink)
    assert SECRET not in json.dumps(seen)
    assert list(seen["environment"]) == ["PATH"]
    assert seen["descriptors"] == [0, 1, 2]
