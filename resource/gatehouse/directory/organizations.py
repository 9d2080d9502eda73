"""Organizations of an environment: the customers of an application."""

from typing import Annotated, Final

from pydantic import BaseModel, Field
from sqlalchemy import bindparam, select

from gatehouse.directory.directory import (
    DEFAULT_PAGE_SIZE,
    Directory,
    Entity,
    Listing,
    NextPageToken,
    PageSize,
    PageToken,
    locked,
)
from gatehouse.directory.environments import find_environment
from gatehouse.directory.identifiers import EnvironmentId
from gatehouse.directory.models import EnvironmentRow, OrganizationRow
from gatehouse.directory.text import CreatedAt, DisplayName
from gatehouse.resourceserver.catalogue import ToolGroup

CONFLICT: Final = "An organization with that external_id exists. Choose another, or call list_organizations."

ExternalId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9._:-]{1,128}$",
        description="Your own identifier of the organization; unique in the environment.",
    ),
]

tools = ToolGroup()


class Organization(Entity):
    """An organization."""

    organization_id: str
    environment_id: str
    name: str
    external_id: str | None
    created_at: CreatedAt


class OrganizationPage(BaseModel):
    """Organizations, the oldest first."""

    organizations: list[Organization]
    next_page_token: NextPageToken


_ORGANIZATION: Final = (
    select(OrganizationRow)
    .join(EnvironmentRow, EnvironmentRow.environment_id == OrganizationRow.environment_id)
    .where(
        OrganizationRow.organization_id == bindparam("organization_id"),
        EnvironmentRow.workspace_id == bindparam("workspace_id"),
    )
)
_OF_ENVIRONMENT: Final = Listing(
    OrganizationPage, OrganizationRow.environment_id, OrganizationRow.organization_id, "org"
)


def find_organization(directory: Directory, organization_id: str, *, lock: bool = False) -> OrganizationRow:
    """Return an organization of the workspace, locked if what belongs to it is to change. Raises NotFound."""
    return directory.find(
        locked(_ORGANIZATION) if lock else _ORGANIZATION,
        "organization",
        "list_organizations",
        organization_id=organization_id,
        workspace_id=directory.workspace_id,
    )


def new_organization(directory: Directory, environment_id: str, name: str, external_id: str | None) -> OrganizationRow:
    """Return the row of a new organization, not yet inserted."""
    return OrganizationRow(
        organization_id=directory.new_identifier("org"),
        environment_id=environment_id,
        name=name,
        external_id=external_id,
        created_at=int(directory.now),
    )


@tools.tool(scopes=["org:read"], read_only=True)
def list_organizations(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> OrganizationPage:
    """List the organizations of one environment, the oldest first.

    If next_page_token is not null, call again with it as page_token.
    """
    find_environment(directory, environment_id)
    return _OF_ENVIRONMENT.read(directory, environment_id, page_token, page_size)


@tools.tool(scopes=["org:write"], read_only=False)
def create_organization(
    directory: Directory, environment_id: EnvironmentId, name: DisplayName, external_id: ExternalId | None = None
) -> Organization:
    """Create an organization in one environment.

    Send external_id, your own identifier of it, if you have one. It must be new in the environment, so a call that is
    repeated by mistake is rejected and does not create a second organization.
    """
    find_environment(directory, environment_id)
    row = new_organization(directory, environment_id, name, external_id)
    directory.insert(CONFLICT, row)
    return Organization.model_validate(row)
