"""Forwarding through the bridge in both directions, and its retries after connection errors."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequest, CallToolRequestParams, CallToolResult, TextContent, Tool, ToolAnnotations
from support import notes_server
from support.bridge import error_text
from support.fake_servers import CLIENT
from support.notes_server import Disturbance, NotesServer, break_after_running, bridged, garble, refuse

from gatehouse.bridge.bearer_auth import BearerAuth
from gatehouse.bridge.errors import BridgeError
from gatehouse.bridge.http_client import create_http
from gatehouse.bridge.remote import RemoteServer
from gatehouse.bridge.server import Bridge, create_server, is_repeatable
from gatehouse.bridge.tokens import TokenSource

pytestmark = pytest.mark.anyio
both_versions = pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])


@pytest.fixture
async def notes(anyio_backend: str) -> AsyncIterator[NotesServer]:
    async with notes_server.running() as server:
        yield server


@both_versions
async def test_tools_resources_and_prompts_are_forwarded(notes: NotesServer, mode: str) -> None:
    async with bridged(notes, mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"read", "write", "erase", "count", "wait"}
        assert (await client.call_tool("read")).structured_content == {"result": 1}
        assert [str(resource.uri) for resource in (await client.list_resources()).resources] == ["note://one"]
        (contents,) = (await client.read_resource("note://one")).contents
        assert contents.text == "the first note"
        assert (await client.list_resource_templates()).resource_templates == []
        assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["summarize"]
        (message,) = (await client.get_prompt("summarize")).messages
        assert message.content == TextContent(text="Summarize the notes.")


async def test_the_desktop_client_sees_the_remote_servers_name(notes: NotesServer) -> None:
    async with bridged(notes, "legacy") as client:
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == ("notes", "9")
        assert client.instructions == "Read before you write."
        assert client.server_capabilities.resources is not None


@both_versions
async def test_progress_is_forwarded_to_a_client_that_requested_it(notes: NotesServer, mode: str) -> None:
    received: list[tuple[float, float | None, str | None]] = []

    async def receive(progress: float, total: float | None, message: str | None) -> None:
        received.append((progress, total, message))

    async with bridged(notes, mode) as client:
        result = await client.call_tool("count", progress_callback=receive)
        assert result.content == [TextContent(text="counted")]
        assert (await client.call_tool("count")).content == [TextContent(text="counted")]
    assert received == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]


async def test_all_progress_is_forwarded_before_the_result(notes: NotesServer) -> None:
    """MCP 2026-07-28, basic/utilities/progress: progress notifications stop before the response."""
    received: list[float] = []

    async def receive_slowly(progress: float, total: float | None, message: str | None) -> None:
        for _ in range(int(100 / progress)):
            await anyio.lowlevel.checkpoint()
        received.append(progress)

    async with create_http() as to_issuer:
        tokens = TokenSource(to_issuer, notes.url, None, lambda: CLIENT)
        async with create_http(BearerAuth(tokens)) as to_remote:
            remote = RemoteServer(notes.url, to_remote, notes_server.OWN)
            count = CallToolRequest(params=CallToolRequestParams(name="count"))
            await remote.request(count, CallToolResult, repeatable=False, progress=receive_slowly)
            assert received == [1, 2, 3]


@both_versions
async def test_a_cancelled_call_is_cancelled_at_the_remote_server(notes: NotesServer, mode: str) -> None:
    async with bridged(notes, mode) as client:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "wait")
                await notes.started.wait()
                group.cancel_scope.cancel()
            await notes.cancelled.wait()
            assert (await client.call_tool("read")).structured_content == {"result": 1}


async def test_a_slow_call_does_not_delay_another(notes: NotesServer) -> None:
    async with bridged(notes, "legacy") as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "wait")
        with anyio.fail_after(20):
            await notes.started.wait()
            assert (await client.call_tool("read")).structured_content == {"result": 1}
        group.cancel_scope.cancel()


@pytest.mark.threat("T-122")
@pytest.mark.parametrize(
    ("tool", "arguments"), [("read", {}), ("write", {"idempotency_key": "k1"})], ids=["read-only", "idempotency key"]
)
@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/html"])
async def test_a_repeatable_call_survives_a_lost_connection(
    notes: NotesServer, tool: str, arguments: dict[str, Any], content_type: str
) -> None:
    async with bridged(notes, "legacy") as client:
        await client.list_tools()
        notes.disturb.append(break_after_running(content_type))
        assert (await client.call_tool(tool, arguments)).structured_content == {"result": 2}
        # Repeated only once: the server may lose every response.
        notes.disturb.extend([break_after_running(content_type)] * 2)
        assert "may have been executed" in error_text(await client.call_tool(tool, arguments))
    assert notes.calls[tool] == 4


@pytest.mark.threat("T-122")
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("write", {"note": "x"}), ("write", {"idempotency_key": ""}), ("erase", {"idempotency_key": "k1"})],
)
@pytest.mark.parametrize("disturbance", [break_after_running(), garble], ids=["truncated", "malformed"])
async def test_a_call_that_may_have_been_executed_is_not_repeated(
    notes: NotesServer, tool: str, arguments: dict[str, Any], disturbance: Disturbance
) -> None:
    async with bridged(notes, "legacy") as client:
        await client.list_tools()
        notes.disturb.append(disturbance)
        message = error_text(await client.call_tool(tool, arguments))
    assert "The request may have been executed: check before you repeat it." in message
    assert notes.calls[tool] == 1


async def test_a_call_that_was_not_executed_is_retried(notes: NotesServer) -> None:
    async with bridged(notes, "legacy") as client:
        notes.disturb.extend([refuse(503), refuse(429)])
        assert (await client.call_tool("erase")).structured_content == {"result": 1}
        notes.disturb.extend([refuse(503)] * 3)
        assert "asks to retry later" in error_text(await client.call_tool("erase"))
        notes.disturb.append(refuse(502))
        assert "may have been executed" in error_text(await client.call_tool("erase"))
    assert notes.calls["erase"] == 1


async def test_a_remote_error_is_forwarded(notes: NotesServer) -> None:
    async with bridged(notes, "legacy") as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource("note://none")
    assert "note://none" in caught.value.error.message


@both_versions
async def test_an_unreachable_server_is_reported(mode: str) -> None:
    notes = NotesServer("http://127.0.0.1:1/mcp")
    async with create_http() as http:
        tokens = TokenSource(http, notes.url, None, lambda: CLIENT)
        remote = RemoteServer(notes.url, http, notes_server.OWN, pauses=())
        with pytest.raises(BridgeError, match="does not respond"):
            await remote.discover()
        server = create_server(Bridge(remote, tokens), None, notes_server.OWN)
        async with notes_server.connect(server, mode) as client:
            assert "The request was not executed; try again later." in error_text(await client.call_tool("read"))
            with pytest.raises(MCPError, match="does not respond"):
                await client.list_tools()
            assert client.server_capabilities.resources is None


async def test_a_server_without_mcp_is_reported(notes: NotesServer) -> None:
    async with create_http() as http:
        # This path answers JSON that is not JSON-RPC.
        remote = RemoteServer(notes.url.replace("/mcp", "/other"), http, notes_server.OWN, pauses=())
        with pytest.raises((BridgeError, MCPError)) as caught:
            await remote.discover()
    assert not isinstance(caught.value, httpx2.HTTPError)


@pytest.mark.threat("T-122")
def test_which_calls_are_repeatable() -> None:
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
