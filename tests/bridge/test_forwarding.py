"""What passes through a bridge, in both directions, and what it does when the connection breaks."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequest, CallToolRequestParams, CallToolResult, TextContent, Tool, ToolAnnotations
from support import foreign_server
from support.bridge import words
from support.foreign_server import Disturbance, ForeignServer, break_after_running, bridged, garble, refuse
from support.token_world import CLIENT

from gatehouse.bridge.failures import Failure
from gatehouse.bridge.remote import Remote
from gatehouse.bridge.server import Bridge, create_server, is_repeatable
from gatehouse.bridge.serving import create_http
from gatehouse.bridge.tokens import BearerAuth, TokenSource

pytestmark = pytest.mark.anyio
both_versions = pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])


@pytest.fixture
async def foreign(anyio_backend: str) -> AsyncIterator[ForeignServer]:
    async with foreign_server.running() as server:
        yield server


@both_versions
async def test_tools_resources_and_prompts_pass_through(foreign: ForeignServer, mode: str) -> None:
    async with bridged(foreign, mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"read", "write", "erase", "count", "wait"}
        assert (await client.call_tool("read")).structured_content == {"result": 1}
        assert [str(resource.uri) for resource in (await client.list_resources()).resources] == ["note://one"]
        (contents,) = (await client.read_resource("note://one")).contents
        assert contents.text == "the first note"
        assert (await client.list_resource_templates()).resource_templates == []
        assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["summarize"]
        (message,) = (await client.get_prompt("summarize")).messages
        assert message.content == TextContent(text="Summarize the notes.")


async def test_the_assistant_sees_the_remote_servers_name_and_instructions(foreign: ForeignServer) -> None:
    async with bridged(foreign, "legacy") as client:
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == ("notes", "9")
        assert client.instructions == "Read before you write."
        assert client.server_capabilities.resources is not None


@both_versions
async def test_progress_reaches_the_assistant_that_asked_for_it(foreign: ForeignServer, mode: str) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async with bridged(foreign, mode) as client:
        result = await client.call_tool("count", progress_callback=hear)
        assert result.content == [TextContent(text="counted")]
        assert (await client.call_tool("count")).content == [TextContent(text="counted")]
    assert told == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]


async def test_all_progress_was_passed_on_when_the_result_is_there(foreign: ForeignServer) -> None:
    """MCP 2026-07-28, basic/utilities/progress: notifications stop with the response."""
    told: list[float] = []

    async def tell_slowly(progress: float, total: float | None, message: str | None) -> None:
        for _ in range(int(100 / progress)):
            await anyio.lowlevel.checkpoint()
        told.append(progress)

    async with create_http() as to_issuer:
        tokens = TokenSource(to_issuer, foreign.url, None, lambda: CLIENT)
        async with create_http(BearerAuth(tokens)) as to_remote:
            remote = Remote(foreign.url, to_remote, foreign_server.OWN)
            count = CallToolRequest(params=CallToolRequestParams(name="count"))
            await remote.request(count, CallToolResult, repeatable=False, progress=tell_slowly)
            assert told == [1, 2, 3]


@both_versions
async def test_a_call_that_the_assistant_cancels_is_cancelled_at_the_server(foreign: ForeignServer, mode: str) -> None:
    async with bridged(foreign, mode) as client:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "wait")
                await foreign.started.wait()
                group.cancel_scope.cancel()
            await foreign.cancelled.wait()
            assert (await client.call_tool("read")).structured_content == {"result": 1}


async def test_a_slow_call_does_not_hold_up_another(foreign: ForeignServer) -> None:
    async with bridged(foreign, "legacy") as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "wait")
        with anyio.fail_after(20):
            await foreign.started.wait()
            assert (await client.call_tool("read")).structured_content == {"result": 1}
        group.cancel_scope.cancel()


@pytest.mark.threat("T-122")
@pytest.mark.parametrize(
    ("tool", "arguments"), [("read", {}), ("write", {"idempotency_key": "k1"})], ids=["reads", "has a key"]
)
@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/html"])
async def test_a_call_that_may_be_repeated_survives_a_broken_connection(
    foreign: ForeignServer, tool: str, arguments: dict[str, Any], content_type: str
) -> None:
    async with bridged(foreign, "legacy") as client:
        await client.list_tools()
        foreign.disturb.append(break_after_running(content_type))
        assert (await client.call_tool(tool, arguments)).structured_content == {"result": 2}
        # Once: a server that loses every answer is not asked for ever.
        foreign.disturb.extend([break_after_running(content_type)] * 2)
        assert "is not known" in words(await client.call_tool(tool, arguments))
    assert foreign.calls[tool] == 4


@pytest.mark.threat("T-122")
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("write", {"note": "x"}), ("write", {"idempotency_key": ""}), ("erase", {"idempotency_key": "k1"})],
)
@pytest.mark.parametrize("disturbance", [break_after_running(), garble], ids=["broken off", "unreadable"])
async def test_a_call_that_may_have_been_carried_out_is_not_repeated(
    foreign: ForeignServer, tool: str, arguments: dict[str, Any], disturbance: Disturbance
) -> None:
    async with bridged(foreign, "legacy") as client:
        await client.list_tools()
        foreign.disturb.append(disturbance)
        refusal = words(await client.call_tool(tool, arguments))
    assert "Whether the request was carried out is not known: look before you repeat it." in refusal
    assert foreign.calls[tool] == 1


async def test_a_call_that_was_not_carried_out_is_tried_again(foreign: ForeignServer) -> None:
    async with bridged(foreign, "legacy") as client:
        foreign.disturb.extend([refuse(503), refuse(429)])
        assert (await client.call_tool("erase")).structured_content == {"result": 1}
        foreign.disturb.extend([refuse(503)] * 3)
        assert "asks to come back later" in words(await client.call_tool("erase"))
        foreign.disturb.append(refuse(502))
        assert "is not known" in words(await client.call_tool("erase"))
    assert foreign.calls["erase"] == 1


async def test_an_error_of_the_remote_server_is_passed_on(foreign: ForeignServer) -> None:
    async with bridged(foreign, "legacy") as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource("note://none")
    assert "note://none" in caught.value.error.message


@both_versions
async def test_a_server_that_is_away_is_told_in_words(mode: str) -> None:
    foreign = ForeignServer("http://127.0.0.1:1/mcp")
    async with create_http() as http:
        tokens = TokenSource(http, foreign.url, None, lambda: CLIENT)
        remote = Remote(foreign.url, http, foreign_server.OWN, pauses=())
        with pytest.raises(Failure, match="does not answer"):
            await remote.discover()
        server = create_server(Bridge(remote, tokens), None, foreign_server.OWN)
        async with foreign_server.assistant(server, mode) as client:
            assert "Nothing was carried out; try again later." in words(await client.call_tool("read"))
            with pytest.raises(MCPError, match="does not answer"):
                await client.list_tools()
            assert client.server_capabilities.resources is None


async def test_what_is_no_mcp_server_is_told_in_words(foreign: ForeignServer) -> None:
    async with create_http() as http:
        # It answers JSON, but no JSON-RPC.
        remote = Remote(foreign.url.replace("/mcp", "/other"), http, foreign_server.OWN, pauses=())
        with pytest.raises((Failure, MCPError)) as caught:
            await remote.discover()
    assert not isinstance(caught.value, httpx2.HTTPError)


@pytest.mark.threat("T-122")
def test_only_what_takes_effect_once_may_be_repeated() -> None:
    schema = {"type": "object", "properties": {"idempotency_key": {"type": "string"}}}

    def tool(input_schema: dict[str, Any] | None = None, **hints: bool) -> Tool:
        return Tool(name="t", input_schema=input_schema or {"type": "object"}, annotations=ToolAnnotations(**hints))

    assert is_repeatable(tool(read_only_hint=True), {})
    assert is_repeatable(tool(idempotent_hint=True), {})
    assert is_repeatable(tool(schema, destructive_hint=True), {"idempotency_key": "k"})
    assert not is_repeatable(tool(schema), {})
    assert not is_repeatable(tool(), {"idempotency_key": "k"})
    assert not is_repeatable(Tool(name="t", input_schema={"type": "object"}), {})
    assert not is_repeatable(None, {"idempotency_key": "k"})
