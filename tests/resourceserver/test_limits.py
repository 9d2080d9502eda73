"""Limits of the MCP endpoint: 429 with a JSON-RPC error, before a call reaches dispatch."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import anyio
import httpx2
import pytest
from pydantic import BaseModel
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import PING, ResourceServer, call_of, error_of, modern_request, running_resource_server
from support.streaming import streamed, tool_request

from gatehouse.resourceserver.bearer.mcp_request import MAX_UNPROVEN_BODY
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, Progress, Scope, ToolGroup
from gatehouse.shared.service.audit.events import AuditAction

pytestmark = pytest.mark.anyio


class Nothing(BaseModel):
    """Nothing."""


@pytest.fixture
def runs() -> list[str]:
    """The tools that ran, in order."""
    return []


@pytest.fixture
def gate() -> anyio.Event:
    """Let the calls of `wait` end."""
    return anyio.Event()


@pytest.fixture
def catalogue(runs: list[str], gate: anyio.Event) -> Catalogue:
    group = ToolGroup()

    @group.tool(scopes=ANY_VALID_TOKEN, read_only=True)
    async def plain() -> Nothing:
        """Have the default limit."""
        runs.append("plain")
        return Nothing()

    @group.tool(scopes=ANY_VALID_TOKEN, read_only=True, limit="2/minute")
    async def rare() -> Nothing:
        """Have a limit of its own."""
        runs.append("rare")
        return Nothing()

    @group.tool(scopes=ANY_VALID_TOKEN, read_only=True, limit="off")
    async def free() -> Nothing:
        """Have no limit."""
        runs.append("free")
        return Nothing()

    @group.tool(scopes=["a:b"], read_only=True)
    async def forbidden() -> Nothing:
        """Need a scope."""
        return Nothing()

    @group.tool(scopes=ANY_VALID_TOKEN, streaming=True)
    async def stream(progress: Progress) -> Nothing:
        """Report progress."""
        await progress.report(1, 2)
        return Nothing()

    @group.tool(scopes=ANY_VALID_TOKEN, read_only=True)
    async def wait() -> Nothing:
        """Wait."""
        runs.append("wait")
        await gate.wait()
        return Nothing()

    return Catalogue("test", [Scope("a:b", "Nothing")], [group])


@asynccontextmanager
async def serving(
    tmp_path: Path, template: Template, clock: FakeClock, catalogue: Catalogue, **limits: Any
) -> AsyncIterator[ResourceServer]:
    """Run a server of one worker with these limits."""
    async with running_resource_server(tmp_path / "rs", template, clock, catalogue, workers=1, **limits) as server:
        yield server


def assert_limited(response: httpx2.Response, wait: int, rpc_id: int | str | None = 7) -> None:
    assert response.status_code == 429, response.text
    assert response.headers["retry-after"] == str(wait)
    assert "www-authenticate" not in response.headers
    error = error_of(response, rpc_id)
    assert error["code"] == -31029
    assert error["message"] == f"Too many calls: this one was not executed. Wait {wait} s, then repeat it."


async def test_a_client_that_calls_too_often_is_told_to_wait(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue, runs: list[str]
) -> None:
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_calls="5/minute") as server:
        token = server.issuer.token()
        for _ in range(5):
            await server.result("plain", token)
            clock.advance(2)
        assert_limited(await server.call("plain", token), 50)
        assert_limited(await server.post({**PING, "id": "a"}, server.issuer.token()), 50, "a")
        body, headers = modern_request("tools/call", name="plain", arguments={})
        assert_limited(await server.post(body, token, headers), 50)
        await server.result("plain", server.issuer.token(client_id="agent_2", sub="agent_2"))
        assert len(runs) == 6
        clock.advance(50)
        await server.result("plain", server.issuer.token())


async def test_refused_requests_count_and_unauthenticated_ones_do_not(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue
) -> None:
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_calls="3/minute") as server:
        token = server.issuer.token()
        for _ in range(5):
            assert (await server.post(PING)).status_code == 401
            assert (await server.post(PING, f"{token}x")).status_code == 401
        assert (await server.call("forbidden", server.issuer.token("x:y"))).status_code == 403
        assert (await server.call("no_such_tool", token)).status_code == 400
        assert (await server.post(b"[", token)).status_code == 400
        assert_limited(await server.post(b"[", token), 60, None)
        assert_limited(await server.call("no_such_tool", token), 60)


async def test_a_tool_has_the_default_limit_or_its_own(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue, runs: list[str]
) -> None:
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_tool_calls="3/minute") as server:
        token, other = server.issuer.token(), server.issuer.token(client_id="agent_2", sub="agent_2")
        for tool, allowed in (("plain", 3), ("rare", 2), ("free", 20)):
            for _ in range(allowed):
                await server.result(tool, token)
        assert_limited(await server.call("plain", token), 60)
        assert_limited(await server.call("rare", token), 60)
        await server.result("free", token)
        await server.result("rare", other)
        assert runs.count("rare") == 3
        assert (await server.post(PING, token)).status_code == 200


async def test_a_client_has_a_number_of_calls_at_once(
    tmp_path: Path,
    resourceserver_template: Template,
    clock: FakeClock,
    catalogue: Catalogue,
    runs: list[str],
    gate: anyio.Event,
) -> None:
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_concurrent_calls=2) as server:
        token, statuses = server.issuer.token(), []

        async def wait() -> None:
            statuses.append((await server.call("wait", token)).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert runs == ["wait", "wait"]
            assert_limited(await server.call("plain", token), 1)
            await server.result("plain", server.issuer.token(client_id="agent_2", sub="agent_2"))
            gate.set()
        assert statuses == [200, 200]
        await server.result("plain", token)


@pytest.mark.threat("T-153")
@pytest.mark.parametrize("tool", ["plain", "stream"])
@pytest.mark.parametrize("reads", [True, False], ids=["read", "connection closed"])
async def test_a_call_counts_until_its_response_has_been_sent(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue, tool: str, reads: bool
) -> None:
    """A client that does not read would otherwise fill the memory with the responses of any number of calls."""
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_concurrent_calls=1) as server:
        token = server.issuer.token()
        body, headers = tool_request("2026-07-28", tool, {}, progress_token=1)
        async with streamed(server.app, body, headers, token) as response:
            assert response.status == 200
            assert response.headers["content-type"].startswith("text/event-stream") == (tool == "stream")
            await anyio.wait_all_tasks_blocked()
            assert_limited(await server.call("plain", token), 1)
            if reads:
                assert [message async for message in response.events()] == ([ANY, ANY] if tool == "stream" else [])
                await server.result("plain", token)
        await server.result("plain", token)


@pytest.mark.threat("T-153")
async def test_a_call_counts_before_its_body_is_received(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue
) -> None:
    """A client could otherwise fill the memory with any number of bodies of 1 MiB whose end it does not send."""
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_concurrent_calls=1) as server:
        token, complete = server.issuer.token(), anyio.Event()
        body, headers = modern_request("tools/call", name="plain", arguments={})
        document, statuses = json.dumps(body).encode(), []

        async def send_slowly() -> AsyncIterator[bytes]:
            yield document[:-1]
            await complete.wait()
            yield document[-1:]

        async def call() -> None:
            statuses.append((await server.post(send_slowly(), token, headers)).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            assert_limited(await server.call("plain", token), 1)
            complete.set()
        assert statuses == [200]
        await server.result("plain", token)


@pytest.mark.threat("T-153")
async def test_a_large_body_is_not_read_past_the_limit(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue
) -> None:
    """Reading a deeply nested body of 1 MiB takes hundreds of milliseconds, in which all other callers wait."""
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_calls="2/minute") as server:
        token, large = server.issuer.token(), {**PING, "params": {"_meta": {"x": "x" * MAX_UNPROVEN_BODY}}}
        assert (await server.post(large, token)).status_code == 200
        assert (await server.post(PING, token)).status_code == 200
        assert_limited(await server.post(PING, token), 60, PING["id"])
        assert_limited(await server.post(large, token), 60, None)


async def test_a_refused_call_leaves_no_call_in_flight(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue
) -> None:
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_concurrent_calls=1) as server:
        for _ in range(3):
            assert (await server.call("forbidden", server.issuer.token("x:y"))).status_code == 403
            assert (await server.call("plain", server.issuer.token(), unknown=1)).json()["result"]["isError"]
        await server.result("plain", server.issuer.token())


async def test_discovery_and_health_have_no_limit(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue
) -> None:
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_calls="1/minute") as server:
        for path in ("/livez", "/readyz", "/.well-known/oauth-protected-resource/mcp"):
            for _ in range(5):
                assert (await server.http.get(f"https://mcp.example.com{path}")).status_code == 200


async def test_the_audit_log_has_the_first_429_and_the_number_of_the_others(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue
) -> None:
    async with serving(
        tmp_path, resourceserver_template, clock, catalogue, limit_calls="1/minute", trusted_proxies="127.0.0.1"
    ) as server:
        token = server.issuer.token(jti="jti-1")
        await server.result("plain", token)
        forwarded = {"X-Forwarded-For": "2001:db8::1"}
        refused = [await server.post(call_of("plain"), token, forwarded) for _ in range(10)]
        assert [response.status_code for response in refused] == [429] * 10
        [_, first] = server.audit(client="agent_1")
        assert first["request_id"] == refused[0].headers["x-request-id"]
        assert (first["action"], first["outcome"], first["object"]) == (AuditAction.TOOL_CALL, "refused", "plain")
        assert (first["jti"], first["reason"]) == ("jti-1", "exceeds the limit calls of 1/minute")
        about = {"limit": "calls", "allowed": "1/minute", "address": "2001:db8::/64"}
        assert "raise RESOURCESERVER_LIMIT_CALLS" in first["detail"].pop("remediation")
        assert first["detail"] == {"status": 429, **about}
    with server.admin_database.read() as session:
        rows = session.connection().exec_driver_sql("SELECT reason, detail FROM audit_event ORDER BY id").all()
    assert rows[-1][0] == "further requests exceeded the limit calls"
    assert '"count": 9' in rows[-1][1]
    assert len(rows) == 3


async def test_a_429_that_cannot_be_recorded_is_503(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, catalogue: Catalogue
) -> None:
    async with serving(tmp_path, resourceserver_template, clock, catalogue, limit_calls="1/minute") as server:
        await server.result("plain", server.issuer.token())
        with server.admin_database.write() as session:
            session.connection().exec_driver_sql("DROP TABLE audit_event")
        assert (await server.call("plain", server.issuer.token())).status_code == 503
