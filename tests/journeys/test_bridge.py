"""A desktop client that supports only stdio calls a remote server's tools through `resourceserver bridge`."""

import json
from pathlib import Path

import anyio
import pytest
from local_stack import LocalStack
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, ToolListChangedNotification
from support import bridge
from support.mcp_client import Mode

from gatehouse.directory.catalogue import CATALOGUE

pytestmark = pytest.mark.anyio
both_versions = pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])

INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"desktop","version":"1"}}}\n'
)


@both_versions
async def test_a_desktop_client_lists_and_calls_tools(stack: LocalStack, workspace_id: str, mode: Mode) -> None:
    credentials = stack.create_client("desktop", "env:read", "--claim", f"workspace_id={workspace_id}")
    async with bridge.start(stack, mode, env=bridge.by_secret(credentials)) as desktop:
        tools = [tool.name for tool in (await desktop.mcp.list_tools()).tools]
        identity = await desktop.call("whoami")
        page = await desktop.call("list_environments")
    assert tools == [name for name, tool in CATALOGUE.tools.items() if tool.scopes <= {"env:read"}]
    assert identity["client_id"] == credentials["client_id"]
    assert "environments" in page


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_the_secret_is_read_from_a_credentials_file(
    stack: LocalStack, workspace_id: str, tmp_path: Path, method: str
) -> None:
    credentials = stack.create_client(
        "desktop", "env:read", "--claim", f"workspace_id={workspace_id}", "--auth-method", method
    )
    file = bridge.private_file(tmp_path / "client.json", credentials)
    async with bridge.start(stack, "legacy", "--credentials", str(file), "--issuer", stack.issuer) as desktop:
        assert (await desktop.call("whoami"))["client_id"] == credentials["client_id"]


async def test_a_private_key_replaces_the_secret(stack: LocalStack, workspace_id: str, tmp_path: Path) -> None:
    key = tmp_path / "desktop.pem"
    credentials = stack.create_client(
        "desktop", "env:read", "--claim", f"workspace_id={workspace_id}", "--generate-key", str(key)
    )
    env = {"BRIDGE_CLIENT_ID": credentials["client_id"]}
    async with bridge.start(stack, "legacy", "--credentials", str(key), env=env) as desktop:
        assert (await desktop.call("whoami"))["client_id"] == credentials["client_id"]


@both_versions
async def test_a_new_grant_applies_from_the_next_call(stack: LocalStack, workspace_id: str, mode: Mode) -> None:
    credentials = stack.create_client("desktop", "env:read", "--claim", f"workspace_id={workspace_id}")
    async with bridge.start(stack, mode, env=bridge.by_secret(credentials)) as desktop:
        await desktop.mcp.list_tools()
        error = await desktop.call_rejected("create_environment", name=f"bridged-{mode}")
        command = (
            f"authserver client grant add {credentials['client_id']} --resource {stack.resource} --scope env:write"
        )
        assert f"This client lacks the scope env:write. Ask the admin to run `{command}`," in error
        stack.run(*command.split())
        created = await desktop.call_until_granted("create_environment", name=f"bridged-{mode}")
        tools = [tool.name for tool in (await desktop.mcp.list_tools()).tools]
    assert created["name"] == f"bridged-{mode}"
    assert "create_environment" in tools
    received = [type(message) for message in desktop.notifications]
    assert received == ([ToolListChangedNotification] if mode == "legacy" else [])


async def test_an_expiring_token_is_renewed_during_a_session(stack: LocalStack, workspace_id: str) -> None:
    credentials = stack.create_client("desktop", "env:read", "--claim", f"workspace_id={workspace_id}", "--ttl", "1")
    async with bridge.start(stack, "legacy", env=bridge.by_secret(credentials)) as desktop:
        first = await desktop.call("whoami")
        with anyio.fail_after(20):
            while (later := await desktop.call("whoami"))["expires_at"] == first["expires_at"]:
                pass
    assert later["client_id"] == first["client_id"]
    refused = stack.run_json("resourceserver", "audit", "--client", credentials["client_id"])
    assert [event for event in refused if event["outcome"] != "allowed"] == []


@pytest.mark.threat("T-129")
async def test_a_session_survives_restarts_of_both_servers(lone_stack: LocalStack) -> None:
    stack = lone_stack
    workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "acme")["workspace_id"]
    # With a token lifetime of one second, nearly every call needs both servers.
    credentials = stack.create_client(
        *("desktop", "env:read env:write", "--claim", f"workspace_id={workspace}", "--ttl", "1")
    )
    async with bridge.start(stack, "legacy", env=bridge.by_secret(credentials)) as desktop:
        assert "does not respond" in desktop.log.read_text(encoding="utf-8")
        stack.start_all()
        assert (await desktop.call("list_environments"))["environments"] == []
        for server in ("resourceserver", "authserver"):
            stack.kill(server)
            stack.start(server)
            # Called immediately: the bridge waits for the server, and may repeat a read-only call.
            await desktop.call("whoami")
            created = await desktop.call("create_environment", name=f"after-{server}")
            assert created in (await desktop.call("list_environments"))["environments"]


@pytest.mark.threat("T-120")
async def test_a_disabled_client_gets_an_error_without_secrets(stack: LocalStack, workspace_id: str) -> None:
    credentials = stack.create_client("desktop", "env:read", "--claim", f"workspace_id={workspace_id}", "--ttl", "1")
    env = {**bridge.by_secret(credentials), "BRIDGE_LOG_LEVEL": "DEBUG"}
    async with bridge.start(stack, "legacy", env=env) as desktop:
        await desktop.call("whoami")
        stack.run("authserver", "client", "disable", credentials["client_id"])
        error = await desktop.call_until_rejected("did not accept the client", "whoami")
        assert credentials["client_id"] in error
        assert "the client disabled" in error
        assert "authserver audit --request req_" in error
        with pytest.raises(MCPError, match="did not accept the client"):
            await desktop.mcp.list_tools()
        stack.run("authserver", "client", "enable", credentials["client_id"])
        await desktop.call_until_granted("whoami")
    log = desktop.log.read_text(encoding="utf-8")
    assert "token obtained" in log
    for text in (error, log):
        assert credentials["client_secret"] not in text
        assert "eyJ" not in text


async def test_invalid_tools_and_arguments_get_the_servers_errors(stack: LocalStack, workspace_id: str) -> None:
    credentials = stack.create_client("desktop", "env:read", "--claim", f"workspace_id={workspace_id}")
    async with bridge.start(stack, "legacy", env=bridge.by_secret(credentials)) as desktop:
        await desktop.call("whoami")
        assert "do not fit the tool's input schema" in await desktop.call_rejected("whoami", surplus=1)
        with pytest.raises(MCPError, match="There is no such tool") as caught:
            await desktop.mcp.call_tool("who_am_i", {})
    assert caught.value.error.code == INVALID_PARAMS


async def test_a_long_call_reports_progress_through_the_bridge(stack: LocalStack, workspace_id: str) -> None:
    credentials = stack.create_client("desktop", "env:write org:write", "--claim", f"workspace_id={workspace_id}")
    received: list[tuple[float, float | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        received.append((progress, total))

    async with bridge.start(stack, "legacy", env=bridge.by_secret(credentials)) as desktop:
        environment = (await desktop.call("create_environment", name="bridged-import"))["environment_id"]
        organizations = [{"name": f"Customer {number}", "external_id": f"crm-{number}"} for number in range(60)]
        arguments = {"environment_id": environment, "organizations": organizations}
        result = await desktop.mcp.call_tool("import_organizations", arguments, progress_callback=on_progress)
    assert result.structured_content is not None
    assert result.structured_content["created"] == 60
    assert received == [(0, 60), (25, 60), (50, 60), (60, 60)]


@pytest.mark.threat("T-124")
async def test_the_bridge_exits_silently_when_its_input_ends(stack: LocalStack) -> None:
    credentials = stack.create_client("desktop", "env:read")
    environment = {**stack.environment, **bridge.by_secret(credentials)}
    for sent in (b"", INITIALIZE):
        command = bridge.bridge_command(stack.resource)
        done = await anyio.run_process(command, input=sent, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert all(json.loads(line)["jsonrpc"] == "2.0" for line in done.stdout.splitlines())


async def test_the_bridge_exits_silently_when_the_client_is_killed(stack: LocalStack) -> None:
    credentials = stack.create_client("desktop", "env:read")
    environment = {**stack.environment, **bridge.by_secret(credentials)}
    command = bridge.bridge_command(stack.resource)
    async with await anyio.open_process(command, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdin.send(INITIALIZE)
        assert b'"result"' in await process.stdout.receive()
        # The client was killed, so nothing reads the response to its last request.
        await process.stdout.aclose()
        await process.stdin.send(b'{"jsonrpc":"2.0","id":2,"method":"ping"}\n')
        await process.stdin.aclose()
        with anyio.fail_after(20):
            assert [chunk async for chunk in process.stderr] == []
            assert await process.wait() == 0
