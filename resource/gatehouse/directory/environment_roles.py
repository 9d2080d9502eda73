"""Roles of an environment."""

from typing import Annotated, Final

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
from gatehouse.directory.environments import find_environment, require_room_in
from gatehouse.directory.identifiers import EnvironmentId
from gatehouse.directory.models import EnvironmentRoleRow
from gatehouse.directory.text import CreatedAt, Description
from gatehouse.resourceserver.catalogue import ToolGroup

RoleName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?$",
        description="Lower case letters, digits, inner hyphens and underscores, at most 63.",
    ),
]

tools = ToolGroup()


class EnvironmentRole(Entity):
    """A role that users of an environment's organizations can have."""

    role_id: str
    environment_id: str
    name: str
    description: str
    created_at: CreatedAt


class EnvironmentRolePage(BaseModel):
    """Roles, the oldest first."""

    roles: list[EnvironmentRole]
    next_page_token: NextPageToken


_OF_ENVIRONMENT: Final = Listing(
    EnvironmentRolePage, EnvironmentRoleRow.environment_id, EnvironmentRoleRow.role_id, "role"
)


def find_role(directory: Directory, environment_id: str, name: str) -> EnvironmentRoleRow:
    """Return a role, by its name, of an environment of the workspace. Raises NotFound."""
    query = select(EnvironmentRoleRow).where(
        EnvironmentRoleRow.environment_id == environment_id, EnvironmentRoleRow.name == name
    )
    return directory.find(query, "role", "list_environment_roles")


@tools.tool(scopes=["env:read"], read_only=True)
def list_environment_roles(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> EnvironmentRolePage:
    """List the roles that users can have in one environment, the oldest first.

    create_organization_user accepts the name of a role. If next_page_token is not null, call again with it as
    page_token.
    """
    find_environment(directory, environment_id)
    return _OF_ENVIRONMENT.read(directory, environment_id, page_token, page_size)


@tools.tool(scopes=["env:write"], read_only=False)
def create_environment_role(
    directory: Directory, environment_id: EnvironmentId, name: RoleName, description: Description = ""
) -> EnvironmentRole:
    """Create a role in one environment. The name must be new there; check with list_environment_roles first."""
    require_room_in(directory, environment_id, EnvironmentRoleRow.environment_id, "roles")
    row = EnvironmentRoleRow(
        role_id=directory.new_identifier("role"),
        environment_id=environment_id,
        name=name,
        description=description,
        created_at=int(directory.now),
    )
    directory.insert("A role with that name exists. Choose another name, or use that role.", row)
    return EnvironmentRole.model_validate(row)
