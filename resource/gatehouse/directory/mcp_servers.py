"""MCP servers of an environment: a registry of protected resources. The server never calls them."""

from typing import Annotated, Final

from pydantic import BaseModel, Field
from sqlalchemy import select

from gatehouse.directory.addresses import McpServerUrl
from gatehouse.directory.directory import (
    DEFAULT_PAGE_SIZE,
    Directory,
    Entity,
    Listing,
    NextPageToken,
    PageSize,
    PageToken,
    change_row,
    locked,
)
from gatehouse.directory.environment_scopes import require_scopes
from gatehouse.directory.environments import find_environment, require_room_in
from gatehouse.directory.identifiers import EnvironmentId, McpServerId
from gatehouse.directory.models import McpServerRow
from gatehouse.directory.text import CreatedAt, DisplayName, ScopeName
from gatehouse.resourceserver.catalogue import ToolGroup
from gatehouse.shared.protocol.resource_metadata import metadata_document, metadata_url

OfferedScopes = Annotated[
    list[ScopeName],
    Field(max_length=100, description="Scopes that the server's tools need. Each must be a scope of the environment."),
]

tools = ToolGroup()


class McpServer(Entity):
    """A registered MCP server."""

    mcp_server_id: str
    environment_id: str
    name: str
    url: str
    scopes: list[str]
    created_at: CreatedAt


class McpServerPage(BaseModel):
    """MCP servers, the oldest first."""

    mcp_servers: list[McpServer]
    next_page_token: NextPageToken


_OF_ENVIRONMENT: Final = Listing(McpServerPage, McpServerRow.environment_id, McpServerRow.mcp_server_id, "mcps")


class ProtectedResourceMetadata(BaseModel):
    """The metadata document that the registered server should publish (RFC 9728)."""

    resource: str
    authorization_servers: list[str]
    bearer_methods_supported: list[str]
    scopes_supported: list[str]
    resource_name: str


class RegisteredMcpServer(McpServer):
    """A registered MCP server, and the metadata that it should publish."""

    protected_resource_metadata: ProtectedResourceMetadata
    protected_resource_metadata_url: str = Field(description="Where to publish it, readable without a token.")


def _registered(row: McpServerRow, issuer: str) -> RegisteredMcpServer:
    document = metadata_document(row.url, issuer, row.scopes, row.name)
    return RegisteredMcpServer(
        **McpServer.model_validate(row).model_dump(),
        protected_resource_metadata=ProtectedResourceMetadata(**document),
        protected_resource_metadata_url=metadata_url(row.url),
    )


@tools.tool(scopes=["env:read"], read_only=True)
def list_mcp_servers(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> McpServerPage:
    """List the MCP servers registered in one environment, the oldest first.

    If next_page_token is not null, call again with it as page_token.
    """
    find_environment(directory, environment_id)
    return _OF_ENVIRONMENT.read(directory, environment_id, page_token, page_size)


@tools.tool(scopes=["env:write"], read_only=False)
def register_mcp_server(
    directory: Directory,
    environment_id: EnvironmentId,
    name: DisplayName,
    url: McpServerUrl,
    scopes: OfferedScopes | None = None,
) -> RegisteredMcpServer:
    """Register an MCP server in one environment, with the scopes that its tools need.

    Create the scopes with create_environment_scope first. The result contains the protected resource metadata
    (RFC 9728) that the server should publish, and the URL to publish it at. The server is not called. Before clients
    can obtain tokens for it, an admin registers its URL with the authorization server: authserver resource add URL.
    """
    require_room_in(directory, environment_id, McpServerRow.environment_id, "MCP servers")
    row = McpServerRow(
        mcp_server_id=directory.new_identifier("mcps"),
        environment_id=environment_id,
        name=name,
        url=url,
        scopes=require_scopes(directory, environment_id, scopes or []),
        created_at=int(directory.now),
    )
    directory.insert("An MCP server with that URL exists. Call list_mcp_servers.", row)
    return _registered(row, directory.claims.iss)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
def update_mcp_server(
    directory: Directory,
    environment_id: EnvironmentId,
    mcp_server_id: McpServerId,
    name: DisplayName | None = None,
    scopes: OfferedScopes | None = None,
) -> RegisteredMcpServer:
    """Change the name or the scopes of a registered MCP server. Members that you omit keep their values.

    scopes replaces the whole list. For another URL, register another server. The result contains the metadata that
    the server should now publish.
    """
    find_environment(directory, environment_id)
    query = select(McpServerRow).where(
        McpServerRow.mcp_server_id == mcp_server_id, McpServerRow.environment_id == environment_id
    )
    row = directory.find(locked(query), "MCP server", "list_mcp_servers")
    offered = require_scopes(directory, environment_id, scopes) if scopes is not None else None
    change_row(row, {"name": name, "scopes": offered})
    return _registered(row, directory.claims.iss)
