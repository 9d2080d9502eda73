"""Users of an organization."""

from gatehouse.directory.directory import Directory
from gatehouse.directory.environment_roles import RoleName
from gatehouse.directory.identifiers import OrganizationId
from gatehouse.directory.organization_users import OrganizationUser, OrganizationUserPage
from gatehouse.directory.paging import DEFAULT_PAGE_SIZE, PageSize, PageToken
from gatehouse.directory.text import DisplayName, EmailAddress
from gatehouse.resourceserver.catalogue import ToolGroup

tools = ToolGroup()


@tools.tool(scopes=["org:read"], read_only=True)
async def list_organization_users(
    directory: Directory,
    organization_id: OrganizationId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> OrganizationUserPage:
    """List the users of one organization, the oldest first.

    When next_page_token is not null, call again with it as page_token.
    """
    return await directory.organization_users.page(organization_id, page_token, page_size)


@tools.tool(scopes=["org:write"], read_only=False)
async def create_organization_user(
    directory: Directory,
    organization_id: OrganizationId,
    email: EmailAddress,
    name: DisplayName | None = None,
    role: RoleName | None = None,
) -> OrganizationUser:
    """Create a user in one organization. No email is sent.

    The email must be new in the organization, of a domain that its settings allow (get_organization_details). role is
    the name of a role of the environment, as list_environment_roles shows it.
    """
    return await directory.organization_users.create(organization_id, email, name, role)
