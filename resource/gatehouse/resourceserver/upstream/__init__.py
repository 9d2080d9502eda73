"""The MCP server behind the gateway, which knows nothing of OAuth: how it is reached, and how its tools are served."""
