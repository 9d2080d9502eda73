"""An MCP server without any authorization, for `make demo-gateway`: notes, over Streamable HTTP.

python examples/notes_server.py PORT [DESCRIPTION]
"""

import sys

from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations

server = MCPServer("Notes")
notes = ["buy milk"]


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def list_notes() -> list[str]:
    """List the notes."""
    return notes


@server.tool(description=sys.argv[2] if len(sys.argv) > 2 else "Add a note.")
def add_note(text: str) -> str:
    """Add a note."""
    notes.append(text)
    return f"note {len(notes)}: {text}"


if __name__ == "__main__":
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
