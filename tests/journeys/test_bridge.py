"""A desktop assistant that only starts programs calls the tools of a remote server, through `resourceserver bridge`."""

from pathlib import Path

import pytest
from local_stack import LocalStack
from mcp_types import ToolListChangedNotification
from support import bridge
from support.mcp_client import Mode

pytestmark = pytest.mark.anyio
both_versions = pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])


@both_versions
async def test_an_assistant_lists_and_calls_with_a_secret_from_the_environment(
    stack: LocalStack, workspace_id: str, mode: Mode
) -> None:
    credentials = stack.create_client("desktop", "env:read", "--claim", f"workspace_id={workspace_id}")
    async with bridge.start(stack, mode, env=bridge.by_secret(credentials)) as assistant:
        tools = [tool.name for tool in (await assistant.client.list_tools()).tools]
        identity = await assistant.call("whoami")
        page = await assistant.call("list_environments")
    assert tools == ["get_environment_details", "list_environments", "whoami"]
    assert identity["client_id"] == credentials["client_id"]
    assert "environments" in page


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_the_secret_can_come_from_the_file_that_registration_printed(
    stack: LocalStack, workspace_id: str, tmp_path: Path, method: str
) -> None:
    credentials = stack.create_client(
        "desktop", "env:read", "--claim", f"workspace_id={workspace_id}", "--auth", method
    )
    file = bridge.private_file(tmp_path / "client.json", credentials)
    async with bridge.start(stack, "legacy", "--credentials", str(file), "--issuer", stack.issuer) as assistant:
        assert (await assistant.call("whoami"))["client_id"] == credentials["client_id"]


async def test_a_client_with_a_key_needs_no_secret(stack: LocalStack, workspace_id: str, tmp_path: Path) -> None:
    key = tmp_path / "desktop.pem"
    credentials = stack.create_client(
        "desktop", "env:read", "--claim", f"workspace_id={workspace_id}", "--generate-key", str(key)
    )
    env = {"BRIDGE_CLIENT_ID": credentials["client_id"]}
    async with bridge.start(stack, "legacy", "--credentials", str(key), env=env) as assistant:
        assert (await assistant.call("whoami"))["client_id"] == credentials["client_id"]


@both_versions
async def test_a_refusal_is_readable_and_the_grant_works_at_the_next_call(
    stack: LocalStack, workspace_id: str, mode: Mode
) -> None:
    credentials = stack.create_client("desktop", "env:read", "--claim", f"workspace_id={workspace_id}")
    async with bridge.start(stack, mode, env=bridge.by_secret(credentials)) as assistant:
        await assistant.client.list_tools()
        refusal = await assistant.refused("create_environment", name=f"bridged-{mode}")
        command = (
            f"authserver client grant add {credentials['client_id']} --resource {stack.resource} --scope env:write"
        )
        assert f"This client lacks the scope env:write. Ask the admin: {command}." in refusal
        stack.run(*command.split())
        created = await assistant.call_until_granted("create_environment", name=f"bridged-{mode}")
        tools = [tool.name for tool in (await assistant.client.list_tools()).tools]
    assert created["name"] == f"bridged-{mode}"
    assert "create_environment" in tools
    told = [type(message) for message in assistant.notifications]
    assert told == ([ToolListChangedNotification] if mode == "legacy" else [])
