"""Roles of an environment."""

from typing import Annotated

from pydantic import BaseModel, Field
from sqlalchemy import select

from gatehouse.directory.environments import PartOfEnvironments
from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import EnvironmentRoleRow
from gatehouse.directory.paging import NextPageToken, fetch_page
from gatehouse.directory.rows import add_row, find_row
from gatehouse.directory.text import CreatedAt

RoleName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?$",
        description="Lower case letters, digits, inner hyphens and underscores, at most 63.",
    ),
]


class EnvironmentRole(BaseModel):
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


class EnvironmentRoles(PartOfEnvironments):
    """The roles of one workspace's environments."""

    async def page(self, environment_id: str, page_token: str | None, page_size: int) -> EnvironmentRolePage:
        """Return one page. Raises NotFound for the environment, DirectoryError for a page_token that is none."""
        environment = await self._environments.find(environment_id)
        rows, next_page_token = await fetch_page(
            self._session,
            select(EnvironmentRoleRow).where(EnvironmentRoleRow.environment_id == environment.environment_id),
            EnvironmentRoleRow.role_id,
            "role",
            page_token,
            page_size,
        )
        return EnvironmentRolePage(roles=[_role(row) for row in rows], next_page_token=next_page_token)

    async def create(self, environment_id: str, name: str, description: str) -> EnvironmentRole:
        """Create a role. Raises NotFound for the environment, Conflict for a name that is taken, LimitReached."""
        owner = EnvironmentRoleRow.environment_id
        row = EnvironmentRoleRow(
            role_id=new_identifier("role", self._now),
            environment_id=await self._room_in(environment_id, owner, "roles in an environment"),
            name=name,
            description=description,
            created_at=int(self._now),
        )
        await add_row(self._session, row, "There is a role of that name. Choose another, or use that one.")
        return _role(row)

    async def find(self, environment_id: str, name: str) -> EnvironmentRoleRow:
        """Return a role of an environment that is the caller's. Raises NotFound."""
        query = select(EnvironmentRoleRow).where(
            EnvironmentRoleRow.environment_id == environment_id, EnvironmentRoleRow.name == name
        )
        return await find_row(self._session, query, "role", "list_environment_roles")


def _role(row: EnvironmentRoleRow) -> EnvironmentRole:
    return EnvironmentRole.model_validate(row, from_attributes=True)
