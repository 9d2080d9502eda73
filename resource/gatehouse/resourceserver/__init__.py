"""The resource server: an MCP server whose tools are called only with the scopes that each one needs."""
