"""Organizations."""

from gatehouse.resource.catalogue import ToolGroup
from gatehouse.resource.directory.directory import Directory
from gatehouse.resource.directory.identifiers import EnvironmentId
from gatehouse.resource.directory.organizations import ExternalId, Organization, OrganizationName, OrganizationPage
from gatehouse.resource.directory.paging import DEFAULT_PAGE_SIZE, PageSize, PageToken

tools = ToolGroup()


@tools.tool(scopes=["org:read"], read_only=True)
async def list_organizations(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> OrganizationPage:
    """List the organizations of one environment, the oldest first.

    When next_page_token is not null, call again with it as page_token.
    """
    return await directory.organizations.page(environment_id, page_token, page_size)


@tools.tool(scopes=["org:write"], read_only=False)
async def create_organization(
    directory: Directory, environment_id: EnvironmentId, name: OrganizationName, external_id: ExternalId | None = None
) -> Organization:
    """Create an organization in one environment.

    Give external_id, your own identifier of it, if you have one: it must be new in the environment, so a call
    that was repeated by mistake is refused instead of making a second organization.
    """
    return await directory.organizations.create(environment_id, name, external_id)
