"""The registry of MCP servers."""

from gatehouse.directory.addresses import McpServerUrl
from gatehouse.directory.directory import Directory
from gatehouse.directory.identifiers import EnvironmentId, McpServerId
from gatehouse.directory.mcp_servers import McpServerPage, OfferedScopes, RegisteredMcpServer
from gatehouse.directory.paging import DEFAULT_PAGE_SIZE, PageSize, PageToken
from gatehouse.directory.text import DisplayName
from gatehouse.resourceserver.catalogue import ToolGroup
from gatehouse.shared.protocol.claims import AccessClaims

tools = ToolGroup()


@tools.tool(scopes=["env:read"], read_only=True)
async def list_mcp_servers(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> McpServerPage:
    """List the MCP servers that are registered in one environment, the oldest first.

    When next_page_token is not null, call again with it as page_token.
    """
    return await directory.mcp_servers.page(environment_id, page_token, page_size)


@tools.tool(scopes=["env:write"], read_only=False)
async def register_mcp_server(
    directory: Directory,
    claims: AccessClaims,
    environment_id: EnvironmentId,
    name: DisplayName,
    url: McpServerUrl,
    scopes: OfferedScopes | None = None,
) -> RegisteredMcpServer:
    """Register an MCP server in one environment, with the scopes that its tools need.

    Create the scopes with create_environment_scope first. The answer holds the protected resource metadata (RFC 9728)
    that the server should publish, and where. The server is not called. Before it can be given tokens, an admin
    registers its URL at the authorization server: authserver resource add URL.
    """
    return await directory.mcp_servers.register(environment_id, name, url, scopes or [], claims.iss)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
async def update_mcp_server(
    directory: Directory,
    claims: AccessClaims,
    environment_id: EnvironmentId,
    mcp_server_id: McpServerId,
    name: DisplayName | None = None,
    scopes: OfferedScopes | None = None,
) -> RegisteredMcpServer:
    """Change the name or the scopes of a registered MCP server; what you leave out stays as it is.

    scopes replaces all of them. Another URL is another server: register that one. The answer holds the metadata that
    the server should publish from now on.
    """
    return await directory.mcp_servers.update(environment_id, mcp_server_id, name, scopes, claims.iss)
