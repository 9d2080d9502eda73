"""A stdio MCP server for desktop assistants: it obtains tokens, and forwards to a remote MCP server."""
