"""Users of an organization."""

from typing import Final

from pydantic import BaseModel, Field
from sqlalchemy import select

from gatehouse.directory.directory import (
    DEFAULT_PAGE_SIZE,
    Directory,
    Entity,
    Listing,
    NextPageToken,
    PageSize,
    PageToken,
)
from gatehouse.directory.environment_roles import RoleName, find_role
from gatehouse.directory.errors import Conflict
from gatehouse.directory.identifiers import OrganizationId
from gatehouse.directory.models import EnvironmentRoleRow, OrganizationUserRow
from gatehouse.directory.organization_settings import find_settings
from gatehouse.directory.organizations import find_organization
from gatehouse.directory.text import CreatedAt, DisplayName, EmailAddress
from gatehouse.resourceserver.catalogue import ToolGroup

tools = ToolGroup()


class OrganizationUser(Entity):
    """A user of an organization."""

    user_id: str
    organization_id: str
    email: str
    name: str | None
    role: str | None = Field(description="Name of a role of the environment; null for none.")
    created_at: CreatedAt


class OrganizationUserPage(BaseModel):
    """Users, the oldest first."""

    users: list[OrganizationUser]
    next_page_token: NextPageToken


_OF_ORGANIZATION: Final = Listing(
    OrganizationUserPage,
    OrganizationUserRow.organization_id,
    OrganizationUserRow.user_id,
    "usr",
    select(*OrganizationUserRow.__table__.c, EnvironmentRoleRow.name.label("role")).outerjoin(
        EnvironmentRoleRow, EnvironmentRoleRow.role_id == OrganizationUserRow.role_id
    ),
)


@tools.tool(scopes=["org:read"], read_only=True)
def list_organization_users(
    directory: Directory,
    organization_id: OrganizationId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> OrganizationUserPage:
    """List the users of one organization, the oldest first.

    If next_page_token is not null, call again with it as page_token.
    """
    find_organization(directory, organization_id)
    return _OF_ORGANIZATION.read(directory, organization_id, page_token, page_size)


@tools.tool(scopes=["org:write"], read_only=False)
def create_organization_user(
    directory: Directory,
    organization_id: OrganizationId,
    email: EmailAddress,
    name: DisplayName | None = None,
    role: RoleName | None = None,
) -> OrganizationUser:
    """Create a user in one organization. No email is sent.

    The email must be new in the organization, of a domain that its settings allow (get_organization_details). role is
    the name of a role of the environment, as returned by list_environment_roles.
    """
    organization = find_organization(directory, organization_id, lock=True)
    domains = (find_settings(directory, organization_id)).allowed_email_domains
    if domains and email.rpartition("@")[2] not in domains:
        raise Conflict("The organization does not allow that email domain. Call get_organization_details.")
    row = OrganizationUserRow(
        user_id=directory.new_identifier("usr"),
        organization_id=organization_id,
        email=email,
        name=name,
        environment_role=find_role(directory, organization.environment_id, role) if role is not None else None,
        created_at=int(directory.now),
    )
    directory.insert("A user with that email exists. Call list_organization_users.", row)
    return OrganizationUser.model_validate(row)
