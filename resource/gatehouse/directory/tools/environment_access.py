"""Roles and scopes of an environment."""

from gatehouse.directory.directory import Directory
from gatehouse.directory.environment_roles import EnvironmentRole, EnvironmentRolePage, RoleName
from gatehouse.directory.environment_scopes import EnvironmentScope, EnvironmentScopePage
from gatehouse.directory.identifiers import EnvironmentId
from gatehouse.directory.paging import DEFAULT_PAGE_SIZE, PageSize, PageToken
from gatehouse.directory.text import Description, ScopeName
from gatehouse.resourceserver.catalogue import ToolGroup

tools = ToolGroup()


@tools.tool(scopes=["env:read"], read_only=True)
async def list_environment_roles(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> EnvironmentRolePage:
    """List the roles that users can have in one environment, the oldest first.

    Give a role's name to create_organization_user. When next_page_token is not null, call again with it as page_token.
    """
    return await directory.roles.page(environment_id, page_token, page_size)


@tools.tool(scopes=["env:write"], read_only=False)
async def create_environment_role(
    directory: Directory, environment_id: EnvironmentId, name: RoleName, description: Description = ""
) -> EnvironmentRole:
    """Create a role in one environment. The name must be new there; look with list_environment_roles first."""
    return await directory.roles.create(environment_id, name, description)


@tools.tool(scopes=["env:read"], read_only=True)
async def list_environment_scopes(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> EnvironmentScopePage:
    """List the scopes that MCP servers of one environment can offer, the oldest first.

    Give their names to register_mcp_server. When next_page_token is not null, call again with it as page_token.
    """
    return await directory.scopes.page(environment_id, page_token, page_size)


@tools.tool(scopes=["env:write"], read_only=False)
async def create_environment_scope(
    directory: Directory, environment_id: EnvironmentId, name: ScopeName, description: Description = ""
) -> EnvironmentScope:
    """Create a scope in one environment, for its MCP servers to offer.

    The name must be new there; look with list_environment_scopes first. Your own rights do not change by it.
    """
    return await directory.scopes.create(environment_id, name, description)
