"""The `resourceserver bridge` process, driven by the SDK's stdio client as an assistant drives it."""

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from local_stack import LocalStack
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp_types import CallToolResult, ServerNotification, TextContent

from support.mcp_client import Mode

COMMAND = Path(sys.executable).parent / "resourceserver"


@dataclass
class Assistant:
    """A desktop assistant that started a bridge."""

    client: Client
    notifications: list[ServerNotification]
    log: Path
    """What the bridge wrote to standard error."""

    async def call(self, tool: str, **arguments: Any) -> Any:
        """Return the structured result of a call that succeeds."""
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, result
        return result.structured_content

    async def refused(self, tool: str, **arguments: Any) -> str:
        """Return the words of a call that is refused."""
        return words(await self.client.call_tool(tool, arguments))

    async def call_until_granted(self, tool: str, **arguments: Any) -> Any:
        """Repeat a call until an admin's grant has reached it: the token endpoint follows within a second."""
        with anyio.fail_after(10):
            while (result := await self.client.call_tool(tool, arguments)).is_error:
                await anyio.lowlevel.checkpoint()
        return result.structured_content

    async def refused_until(self, text: str, tool: str) -> str:
        """Repeat a call until it is refused in words that hold a text."""
        with anyio.fail_after(20):
            while True:
                result = await self.client.call_tool(tool, {})
                if result.is_error and text in words(result):
                    return words(result)


def words(result: CallToolResult) -> str:
    """Return the text of a refusal."""
    assert result.is_error, result
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def by_secret(credentials: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that hold a client's secret."""
    return {"BRIDGE_CLIENT_ID": credentials["client_id"], "BRIDGE_CLIENT_SECRET": credentials["client_secret"]}


def private_file(path: Path, credentials: Mapping[str, Any]) -> Path:
    """Write what `authserver client create` printed to a file that only its owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(credentials, file)
    return path


@asynccontextmanager
async def start(
    stack: LocalStack, mode: Mode, *options: str, env: Mapping[str, str] | None = None, url: str | None = None
) -> AsyncIterator[Assistant]:
    """Start a bridge, and assert at its end that it had nothing unexpected to say."""
    log = stack.folder / f"bridge-{len(list(stack.folder.glob('bridge-*.log')))}.log"
    parameters = StdioServerParameters(
        command=str(COMMAND), args=["bridge", url or stack.resource, *options], env=dict(env or {}), cwd=stack.folder
    )
    notifications: list[ServerNotification] = []

    async def remember(message: Any) -> None:
        notifications.append(message)

    with log.open("w", encoding="utf-8") as errlog:
        async with Client(stdio_client(parameters, errlog), mode=mode, message_handler=remember) as client:
            yield Assistant(client, notifications, log)
    assert "Traceback" not in log.read_text(encoding="utf-8")
