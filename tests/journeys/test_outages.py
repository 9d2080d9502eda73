"""Outages: each server without the other."""

import json
import urllib.error
import urllib.request
from email.message import Message

import anyio
import pytest
from local_stack import LocalStack
from support.mcp_client import connect

pytestmark = pytest.mark.anyio


def post_mcp(stack: LocalStack, token: str) -> tuple[int, Message]:
    """Send a call with a token, without a client library that would react to the response."""
    request = urllib.request.Request(
        stack.resource,
        data=json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode(),
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        },
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.headers
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, error.headers


def readiness(stack: LocalStack) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(stack.resource.replace("/mcp", "/readyz")) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.threat("T-127")
async def test_a_resource_server_that_starts_first_becomes_ready(lone_stack: LocalStack) -> None:
    stack = lone_stack
    stack.start("resourceserver")
    stack.wait_until_listening("resourceserver")
    status, checks = readiness(stack)
    assert status == 503
    assert checks == {
        "status": "unavailable",
        "database": "ok",
        "issuer_keys": "none is known",
        "sessions": "ok",
        "status_lists": "none is known",
    }
    token = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsiLCJ0eXAiOiJhdCtqd3QifQ.e30.AAAA"
    status, headers = post_mcp(stack, token)
    assert status == 503
    assert int(headers["Retry-After"]) > 0
    stack.start("authserver")
    stack.wait_until_ready("resourceserver")
    # The workers become ready one by one, and each responds 503 until then.
    with anyio.fail_after(10):
        while (status := (await anyio.to_thread.run_sync(post_mcp, stack, token))[0]) == 503:
            pass
    assert status == 401


@pytest.mark.threat("T-125")
async def test_calls_continue_after_the_authorization_server_is_killed(lone_stack: LocalStack) -> None:
    stack = lone_stack
    stack.start_all()
    workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "acme")["workspace_id"]
    credentials = stack.create_client("survivor", "env:read env:write", "--claim", f"workspace_id={workspace}")
    async with connect(stack, credentials, "2026-07-28") as agent:
        await agent.call("whoami")
        stack.kill("authserver")
        created = await agent.call("create_environment", name="after-the-kill")
        for _ in range(20):
            assert (await agent.call("list_environments"))["environments"] == [created]
        stack.start("authserver")
        stack.wait_until_ready("authserver")
        async with connect(stack, credentials, "legacy") as another:
            assert (await another.call("list_environments"))["environments"] == [created]


async def test_a_killed_resource_server_keeps_all_confirmed_writes(lone_stack: LocalStack) -> None:
    stack = lone_stack
    stack.start_all()
    workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "acme")["workspace_id"]
    credentials = stack.create_client("writer", "env:read env:write", "--claim", f"workspace_id={workspace}")
    async with connect(stack, credentials, "2026-07-28") as agent:
        created = await agent.call("create_environment", name="kept")
    stack.kill("resourceserver")
    stack.start("resourceserver")
    stack.wait_until_ready("resourceserver")
    async with connect(stack, credentials, "2026-07-28") as agent:
        assert (await agent.call("list_environments"))["environments"] == [created]
    events = stack.run_json("resourceserver", "audit", "--client", credentials["client_id"])
    assert [event["outcome"] for event in events if event["object"] == "create_environment"] == ["allowed"]


async def test_a_graceful_stop_loses_no_audit_event(lone_stack: LocalStack) -> None:
    stack = lone_stack
    stack.start_all()
    workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "acme")["workspace_id"]
    credentials = stack.create_client("reader", "env:read", "--claim", f"workspace_id={workspace}")
    async with connect(stack, credentials, "2026-07-28") as agent:
        for _ in range(10):
            await agent.call("list_environments")
    stack.stop()
    of_client = ("audit", "--client", credentials["client_id"])
    calls = [event for event in stack.run_json("resourceserver", *of_client) if event["object"] == "list_environments"]
    assert len(calls) == 10
    issued = [event for event in stack.run_json("authserver", *of_client) if event["action"] == "token.issue"]
    assert len(issued) == 1
