"""Environments."""

from gatehouse.directory.directory import Directory
from gatehouse.directory.environments import (
    Environment,
    EnvironmentKind,
    EnvironmentName,
    EnvironmentPage,
)
from gatehouse.directory.identifiers import EnvironmentId
from gatehouse.directory.paging import DEFAULT_PAGE_SIZE, PageSize, PageToken
from gatehouse.resourceserver.catalogue import ToolGroup

tools = ToolGroup()


@tools.tool(scopes=["env:read"], read_only=True)
async def list_environments(
    directory: Directory, page_token: PageToken | None = None, page_size: PageSize = DEFAULT_PAGE_SIZE
) -> EnvironmentPage:
    """List the environments of your workspace, the oldest first.

    Use an environment_id from here wherever another tool asks for one. When next_page_token is not null, call again
    with it as page_token.
    """
    return await directory.environments.page(page_token, page_size)


@tools.tool(scopes=["env:read"], read_only=True)
async def get_environment_details(directory: Directory, environment_id: EnvironmentId) -> Environment:
    """Get one environment of your workspace by its environment_id."""
    return await directory.environments.get(environment_id)


@tools.tool(scopes=["env:write"], read_only=False)
async def create_environment(
    directory: Directory, name: EnvironmentName, kind: EnvironmentKind = "development"
) -> Environment:
    """Create an environment in your workspace.

    The name must be new in the workspace; look with list_environments first. The answer holds the environment_id
    that create_organization needs.
    """
    return await directory.environments.create(name, kind)
