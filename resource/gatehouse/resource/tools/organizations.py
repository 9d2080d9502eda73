"""Organizations."""

from gatehouse.resource.catalogue import ToolGroup
from gatehouse.resource.directory.directory import Directory
from gatehouse.resource.directory.identifiers import EnvironmentId, OrganizationId
from gatehouse.resource.directory.organization_settings import (
    AllowedEmailDomains,
    MfaRequired,
    OrganizationDetails,
    OrganizationSettings,
    SessionLifetime,
)
from gatehouse.resource.directory.organizations import ExternalId, Organization, OrganizationPage
from gatehouse.resource.directory.paging import DEFAULT_PAGE_SIZE, PageSize, PageToken
from gatehouse.resource.directory.text import DisplayName

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
    directory: Directory, environment_id: EnvironmentId, name: DisplayName, external_id: ExternalId | None = None
) -> Organization:
    """Create an organization in one environment.

    Give external_id, your own identifier of it, if you have one: it must be new in the environment, so a call
    that was repeated by mistake is refused instead of making a second organization.
    """
    return await directory.organizations.create(environment_id, name, external_id)


@tools.tool(scopes=["org:read"], read_only=True)
async def get_organization_details(directory: Directory, organization_id: OrganizationId) -> OrganizationDetails:
    """Get one organization by its organization_id, with its settings."""
    return await directory.organization_settings.details(organization_id)


@tools.tool(scopes=["org:write"], read_only=False, destructive=True, idempotent=True)
async def update_organization_settings(
    directory: Directory,
    organization_id: OrganizationId,
    mfa_required: MfaRequired | None = None,
    allowed_email_domains: AllowedEmailDomains | None = None,
    session_lifetime_minutes: SessionLifetime | None = None,
) -> OrganizationSettings:
    """Change settings of one organization; what you leave out stays as it is.

    allowed_email_domains replaces all of them and holds for new users only. See what is set with
    get_organization_details.
    """
    changes = {
        "mfa_required": mfa_required,
        "allowed_email_domains": allowed_email_domains,
        "session_lifetime_minutes": session_lifetime_minutes,
    }
    return await directory.organization_settings.update(organization_id, changes)
