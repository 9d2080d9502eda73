"""An MCP server without authorization, on the Python SDK: what the gateways of the benchmark stand in front of.

Argument: a port of 127.0.0.1 for stateless Streamable HTTP with JSON responses, or `stdio`.
"""

import sys

import uvicorn
from mcp.server.mcpserver import MCPServer

server = MCPServer("upstream", version="1", log_level="WARNING")


@server.tool()
async def echo(text: str) -> str:
    """Return the text."""
    return text


def main() -> None:
    """Serve until SIGTERM, or until standard input ends."""
    (where,) = sys.argv[1:]
    if where == "stdio":
        server.run("stdio")
    else:
        app = server.streamable_http_app(stateless_http=True, json_response=True)
        uvicorn.run(app, port=int(where), loop="uvloop", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
