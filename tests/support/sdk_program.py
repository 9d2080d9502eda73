"""A server of the SDK over its standard streams. With `legacy`, it knows only the versions with a handshake."""

import sys
from typing import Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server

server = MCPServer("notes", version="9")


@server.tool()
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
async def count(ctx: Context[Any, Any]) -> str:
    """Count to three."""
    for step in (1, 2, 3):
        await ctx.report_progress(step, 3, f"step {step}")
    return "counted"


async def serve_legacy() -> None:
    async with stdio_server() as (read, write):
        await serve_loop(server._lowlevel_server, read, write, lifespan_state={})


if __name__ == "__main__":
    if "legacy" in sys.argv:
        anyio.run(serve_legacy)
    else:
        server.run(transport="stdio")
