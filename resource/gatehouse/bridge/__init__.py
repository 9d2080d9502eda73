"""The stdio bridge: an MCP server for desktop clients that obtains tokens and forwards to a remote MCP server."""
