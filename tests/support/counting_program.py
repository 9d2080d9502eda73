"""An MCP server over its standard streams that keeps something of its caller: how often it was called."""

import os

from mcp.server.mcpserver import MCPServer

server = MCPServer("counter")
calls = 0


@server.tool()
async def count(name: str) -> dict[str, int | str]:
    """Count the calls of this process."""
    global calls  # noqa: PLW0603 - the state that callers must not share
    calls += 1
    return {"name": name, "calls": calls, "process": os.getpid()}


if __name__ == "__main__":
    server.run(transport="stdio")
