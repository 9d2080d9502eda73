"""Connections: the OpenID providers that users sign in with."""

from gatehouse.directory.addresses import IssuerUrl
from gatehouse.directory.connections import (
    DEFAULT_SCOPES,
    AuthMethod,
    ClientId,
    Connection,
    ConnectionPage,
    OidcProvider,
    OidcScopes,
)
from gatehouse.directory.directory import Directory
from gatehouse.directory.identifiers import ConnectionId, EnvironmentId, OrganizationId
from gatehouse.directory.paging import DEFAULT_PAGE_SIZE, PageSize, PageToken
from gatehouse.directory.text import DisplayName
from gatehouse.resourceserver.catalogue import ToolGroup

tools = ToolGroup()


@tools.tool(scopes=["env:read"], read_only=True)
async def list_environment_connections(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> ConnectionPage:
    """List the connections of one environment, those of its organizations included, the oldest first.

    When next_page_token is not null, call again with it as page_token.
    """
    return await directory.connections.page(environment_id, page_token, page_size)


@tools.tool(scopes=["org:read"], read_only=True)
async def list_organization_connections(
    directory: Directory,
    organization_id: OrganizationId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> ConnectionPage:
    """List the connections that one organization has for itself, the oldest first.

    When next_page_token is not null, call again with it as page_token.
    """
    return await directory.connections.page_of_organization(organization_id, page_token, page_size)


@tools.tool(scopes=["env:write"], read_only=False)
async def create_environment_oidc_connection(
    directory: Directory,
    environment_id: EnvironmentId,
    display_name: DisplayName,
    issuer: IssuerUrl,
    client_id: ClientId,
    organization_id: OrganizationId | None = None,
    scopes: OidcScopes | None = None,
    token_endpoint_auth_method: AuthMethod = "private_key_jwt",  # noqa: S107 - the name of a method
) -> Connection:
    """Create a connection to an OpenID provider in one environment, for one organization if you name it.

    No client secret is taken: the connection authenticates by a key, or is a public client. scopes are email, openid
    and profile unless you give others. Nobody can use the connection before enable_environment_connection.
    """
    provider = OidcProvider(display_name, issuer, client_id, scopes or DEFAULT_SCOPES, token_endpoint_auth_method)
    return await directory.connections.create(environment_id, organization_id, provider)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
async def update_environment_oidc_connection(
    directory: Directory,
    environment_id: EnvironmentId,
    connection_id: ConnectionId,
    display_name: DisplayName | None = None,
    issuer: IssuerUrl | None = None,
    client_id: ClientId | None = None,
    scopes: OidcScopes | None = None,
    token_endpoint_auth_method: AuthMethod | None = None,
) -> Connection:
    """Change a connection; what you leave out stays as it is.

    Another issuer decides who its users are: make sure that it is the one you mean.
    """
    changes = {
        "display_name": display_name,
        "issuer": issuer,
        "client_id": client_id,
        "scopes": scopes,
        "token_endpoint_auth_method": token_endpoint_auth_method,
    }
    return await directory.connections.update(environment_id, connection_id, changes)


@tools.tool(scopes=["env:write"], read_only=False, idempotent=True)
async def enable_environment_connection(
    directory: Directory, environment_id: EnvironmentId, connection_id: ConnectionId
) -> Connection:
    """Let users sign in with a connection. Does nothing when it is enabled already.

    Check its issuer and client_id with list_environment_connections first.
    """
    return await directory.connections.enable(environment_id, connection_id)
