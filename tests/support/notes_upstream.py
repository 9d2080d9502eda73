"""An MCP server without OAuth, for a gateway: it appends notes to a file, so that a test sees what was executed.

python -m support.notes_upstream PORT FILE
"""

import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations

server = MCPServer("Notes")
notes = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("notes.txt")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def whoami() -> str:
    """Say hello."""
    return "hello"


@server.tool()
def add_note(text: str) -> str:
    """Append a note."""
    with notes.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")
    return text


if __name__ == "__main__":
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
