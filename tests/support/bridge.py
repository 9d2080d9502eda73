"""The `resourceserver bridge` process, driven by the SDK's stdio client in place of a desktop client."""

import json
import os
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

from support.forks import fork_server
from support.mcp_client import Mode


@dataclass
class DesktopClient:
    """A desktop client that started a bridge."""

    mcp: Client
    notifications: list[ServerNotification]
    log: Path
    """The bridge's standard error."""

    async def call(self, tool: str, **arguments: Any) -> Any:
        """Return the structured result of a successful call."""
        result = await self.mcp.call_tool(tool, arguments)
        assert not result.is_error, result
        return result.structured_content

    async def call_rejected(self, tool: str, **arguments: Any) -> str:
        """Return the error text of a rejected call."""
        return error_text(await self.mcp.call_tool(tool, arguments))

    async def call_until_granted(self, tool: str, **arguments: Any) -> Any:
        """Repeat a call until an admin's grant takes effect, which the token endpoint delays by at most a second."""
        with anyio.fail_after(10):
            while (result := await self.mcp.call_tool(tool, arguments)).is_error:
                await anyio.lowlevel.checkpoint()
        return result.structured_content

    async def call_until_rejected(self, text: str, tool: str) -> str:
        """Repeat a call until its error text contains `text`."""
        with anyio.fail_after(20):
            while True:
                result = await self.mcp.call_tool(tool, {})
                if result.is_error and text in error_text(result):
                    return error_text(result)


def bridge_command(*arguments: str) -> list[str]:
    """Return the command that starts a bridge."""
    return [str(fork_server().program("resourceserver")), "bridge", *arguments]


def error_text(result: CallToolResult) -> str:
    """Return the text of an error result."""
    assert result.is_error, result
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def by_secret(credentials: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables with a client's secret."""
    return {"BRIDGE_CLIENT_ID": credentials["client_id"], "BRIDGE_CLIENT_SECRET": credentials["client_secret"]}


def private_file(path: Path, credentials: Mapping[str, Any]) -> Path:
    """Write the output of `authserver client create` to a file with mode 0600."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(credentials, file)
    return path


@asynccontextmanager
async def start(
    stack: LocalStack, mode: Mode, *options: str, env: Mapping[str, str] | None = None, url: str | None = None
) -> AsyncIterator[DesktopClient]:
    """Start a bridge, and assert at the end that it logged no traceback."""
    log = stack.folder / f"bridge-{len(list(stack.folder.glob('bridge-*.log')))}.log"
    parameters = StdioServerParameters(
        command=str(fork_server().program("resourceserver")),
        args=["bridge", url or stack.resource, *options],
        env=dict(env or {}),
        cwd=stack.folder,
    )
    notifications: list[ServerNotification] = []

    async def remember(message: Any) -> None:
        notifications.append(message)

    with log.open("w", encoding="utf-8") as errlog:
        async with Client(stdio_client(parameters, errlog), mode=mode, message_handler=remember) as client:
            yield DesktopClient(client, notifications, log)
    assert "Traceback" not in log.read_text(encoding="utf-8")
