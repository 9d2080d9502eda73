"""Which protocol version is spoken to an upstream over HTTP, and how that is found out."""

import asyncio
from typing import Any

import anyio
import pytest
from support.http_upstreams import refused, running
from support.upstreams import (
    LEGACY,
    MODERN,
    RESULT,
    TOOL,
    call_of,
    error,
    hang_up,
    result,
    scripted_upstream,
    status,
)

from gatehouse.resourceserver.upstream.upstream import UpstreamUnavailable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "refusal",
    [
        status(400),
        status(404),
        status(405),
        status(422),
        error(-32601),
        error(-32601, 404),
        error(-32022, 400),
        result({"supportedVersions": [LEGACY]}),
        status(200, b"<html>", "text/html"),
    ],
)
async def test_a_server_without_discovery_gets_the_handshake(refusal: Any) -> None:
    async with scripted_upstream("2025-06-18") as server, running(server.url) as upstream:
        server.answer("server/discover", refusal)
        assert await upstream.call_tool(call_of()) == RESULT
        assert server.of("tools/call")[0].headers["mcp-protocol-version"] == "2025-06-18"


@pytest.mark.parametrize("outage", [status(401), status(403), status(429), status(502), status(503), hang_up])
async def test_an_outage_says_nothing_of_the_version(outage: Any) -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("server/discover", outage)
        assert isinstance(await refused(upstream), UpstreamUnavailable)
        assert not server.of("initialize")
        assert await upstream.call_tool(call_of()) == RESULT


@pytest.mark.parametrize(
    ("handshake", "reason"),
    [
        (result({"protocolVersion": "2024-11-05"}), "supports none of the MCP versions"),
        (result({"protocolVersion": LEGACY}, mcp_session_id="a b"), "not visible ASCII"),
        (error(-32600), "JSON-RPC error -32600"),
        (status(500), "HTTP status 500"),
    ],
)
async def test_a_handshake_that_fails_leaves_the_call_unsent(handshake: Any, reason: str) -> None:
    async with scripted_upstream(LEGACY) as server, running(server.url) as upstream:
        server.answer("initialize", handshake)
        failure = await refused(upstream)
        assert isinstance(failure, UpstreamUnavailable)
        assert reason in str(failure)
        assert await upstream.call_tool(call_of()) == RESULT


async def test_the_version_is_negotiated_once_for_concurrent_calls() -> None:
    async with scripted_upstream() as server, running(server.url) as upstream, anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(upstream.call_tool, call_of())
    assert len(server.of("server/discover")) == 1
    assert len(server.of("tools/call")) == 10


async def test_concurrent_calls_share_a_negotiation_that_fails() -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("server/discover", status(503), status(503))
        failures = await asyncio.gather(*(upstream.call_tool(call_of()) for _ in range(5)), return_exceptions=True)
        assert [str(failure) for failure in failures] == ["the upstream answered with the HTTP status 503"] * 5
        assert len(server.of("server/discover")) == 1


async def test_an_upstream_of_another_version_is_negotiated_with_again() -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        assert await upstream.call_tool(call_of()) == RESULT
        server.version = LEGACY
        assert await upstream.call_tool(call_of()) == RESULT
        server.version = MODERN
        assert await upstream.list_tools() == [TOOL]
        server.answer("tools/call", error(-32022, 400))
        server.version = LEGACY
        assert await upstream.call_tool(call_of()) == RESULT
    versions = [received.headers["mcp-protocol-version"] for received in server.of("tools/call")]
    assert versions == [MODERN, MODERN, LEGACY, MODERN, LEGACY]


async def test_a_call_that_the_same_upstream_does_not_accept_is_not_repeated() -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", status(400))
        assert isinstance(await refused(upstream), UpstreamUnavailable)
        assert len(server.of("tools/call")) == 1
        server.answer("tools/call", status(405))
        assert isinstance(await refused(upstream), UpstreamUnavailable)
        assert len(server.of("server/discover")) == 2


async def test_without_a_store_calls_of_a_stateful_upstream_are_refused() -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server:
        async with running(server.url) as upstream:
            assert await upstream.list_tools() == [TOOL]
            assert "has no sessions of callers" in str(await refused(upstream))
        assert (await server.until("DELETE"))[0].session == "session-1"


async def test_an_own_session_that_ended_is_replaced() -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, running(server.url) as upstream:
        await upstream.list_tools()
        server.sessions.clear()
        assert await upstream.list_tools() == [TOOL]
        assert [received.session for received in server.of("tools/list")] == ["session-1", "session-1", "session-2"]
