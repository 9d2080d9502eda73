"""The line protocol of the Python clients, driven by tests/support/interop.py: one JSON line for a call or answer."""

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp.client.auth.extensions.client_credentials import SignedJWTParameters, static_assertion_provider
from mcp.shared.exceptions import MCPError

CallTool = Callable[[str, dict[str, Any]], Awaitable[tuple[bool, Any, list[Any]]]]
"""Returns whether the result is an error, its structured content, and its content."""

exchanges: list[tuple[str, str, int]] = []
"""Method, path and status of every HTTP exchange."""


def write(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def read_agent() -> dict[str, Any]:
    """Return the resource, the issuer, the protocol version and the client's credentials."""
    agent: dict[str, Any] = json.loads(sys.stdin.readline())
    return agent


async def record(response: httpx2.Response) -> None:
    """Record an exchange; an event hook of httpx2."""
    exchanges.append((response.request.method, response.request.url.path, response.status_code))


def assertions(agent: dict[str, Any]) -> Callable[[str], Awaitable[str]]:
    """Return a function that signs assertions with the agent's key, or reads the token of its platform."""
    if "token_file" in agent:
        return static_assertion_provider(Path(agent["token_file"]).read_text(encoding="ascii"))
    return SignedJWTParameters(
        issuer=agent["client_id"],
        subject=agent["client_id"],
        signing_key=Path(agent["private_key_file"]).read_text(encoding="ascii"),
        signing_algorithm="ES256",
    ).create_assertion_provider()


async def answer(call_tool: CallTool, call: dict[str, Any]) -> None:
    try:
        is_error, structured_content, content = await call_tool(call["tool"], call["arguments"])
    except MCPError as error:
        write(raised=type(error).__name__, message=str(error), code=error.error.code, data=error.error.data)
    else:
        text = "".join(block.text for block in content if block.type == "text")
        write(is_error=is_error, structured_content=structured_content, text=text)


async def serve(protocol: str, tools: list[dict[str, Any]], call_tool: CallTool) -> None:
    """Write the protocol version and the tools, then make each requested call."""
    write(protocol=protocol, tools=tools)
    while line := await anyio.to_thread.run_sync(sys.stdin.readline):
        await answer(call_tool, json.loads(line))
    write(exchanges=exchanges)
