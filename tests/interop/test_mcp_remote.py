"""mcp-remote: a third-party stdio bridge that adds a bearer token to every request."""

import os
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError
from support.interop import NODE_MODULES, SCOPES

pytestmark = pytest.mark.anyio

BRIDGE = NODE_MODULES / "mcp-remote" / "dist" / "proxy.js"


@pytest.mark.parametrize(("mode", "protocol"), [("legacy", "2025-11-25"), ("2026-07-28", "2026-07-28")])
async def test_a_stdio_client_calls_tools_through_mcp_remote(
    node: str,
    stack: LocalStack,
    readers: dict[str, Any],
    reader_token: str,
    catalogue: dict[str, Any],
    home: Path,
    mode: Any,
    protocol: str,
) -> None:
    bridge = StdioServerParameters(
        command=node,
        # In the environment, because other users of the machine can read a process's arguments.
        args=[str(BRIDGE), stack.resource, "--transport", "http-only", "--header", "Authorization:${BEARER}"],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "BEARER": f"Bearer {reader_token}"},
    )
    with (home / "errors").open("w", encoding="utf-8") as errors:
        async with Client(stdio_client(bridge, errlog=errors), mode=mode, read_timeout_seconds=60) as client:
            assert client.protocol_version == protocol
            tools = (await client.list_tools()).tools
            identity = (await client.call_tool("whoami", {})).structured_content
            with pytest.raises(MCPError) as refused:
                await client.call_tool("create_environment", {"name": "never"})
            after = (await client.call_tool("whoami", {})).structured_content
    assert {tool.name: (tool.meta or {})[SCOPES] for tool in tools} == {
        tool["name"]: tool["scopes"] for tool in catalogue["tools"] if set(tool["scopes"]) <= {"env:read"}
    }
    assert identity is not None
    assert identity["client_id"] == readers["secret"]["client_id"]
    assert after == identity
    # mcp-remote answers a 403 with dynamic client registration, and reports its failure instead of the 403.
    assert "does not support dynamic client registration" in str(refused.value)
    assert reader_token not in (home / "errors").read_text(encoding="utf-8")
