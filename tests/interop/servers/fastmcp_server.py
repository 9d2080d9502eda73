"""A server on FastMCP, with sessions. Argument: the port."""

import sys

from fastmcp import FastMCP
from mcp_types import ToolAnnotations

server = FastMCP("notes")
notes: list[str] = []


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def read_notes() -> str:
    """Return all notes."""
    return f"{len(notes)} notes: {', '.join(notes)}"


@server.tool
def add_note(text: str) -> str:
    """Add a note."""
    notes.append(text)
    return f"Added {text}"


if __name__ == "__main__":
    server.run("http", port=int(sys.argv[1]), show_banner=False, log_level="WARNING")
