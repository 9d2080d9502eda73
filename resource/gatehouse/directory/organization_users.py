"""Users of an organization."""

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.directory.environment_roles import EnvironmentRoles
from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import OrganizationUserRow
from gatehouse.directory.organization_settings import SettingsOfOrganizations
from gatehouse.directory.organizations import Organizations
from gatehouse.directory.paging import NextPageToken, fetch_page
from gatehouse.directory.rows import add_row
from gatehouse.directory.text import CreatedAt


class OrganizationUser(BaseModel):
    """A user of an organization."""

    user_id: str
    organization_id: str
    email: str
    name: str | None
    role: str | None = Field(description="The name of a role of the environment; null for none.")
    created_at: CreatedAt


class OrganizationUserPage(BaseModel):
    """Users, the oldest first."""

    users: list[OrganizationUser]
    next_page_token: NextPageToken


class OrganizationUsers:
    """The users of one workspace's organizations."""

    def __init__(
        self,
        session: AsyncSession,
        organizations: Organizations,
        settings: SettingsOfOrganizations,
        roles: EnvironmentRoles,
        now: float,
    ) -> None:
        self._session = session
        self._organizations = organizations
        self._settings = settings
        self._roles = roles
        self._now = now

    async def page(self, organization_id: str, page_token: str | None, page_size: int) -> OrganizationUserPage:
        """Return one page. Raises NotFound for the organization, DirectoryError for a page_token that is none."""
        organization = await self._organizations.find(organization_id)
        rows, next_page_token = await fetch_page(
            self._session,
            select(OrganizationUserRow).where(OrganizationUserRow.organization_id == organization.organization_id),
            OrganizationUserRow.user_id,
            "usr",
            page_token,
            page_size,
        )
        return OrganizationUserPage(users=[_user(row) for row in rows], next_page_token=next_page_token)

    async def create(self, organization_id: str, email: str, name: str | None, role: str | None) -> OrganizationUser:
        """Create a user.

        Raises:
            NotFound: the organization, or the role in its environment.
            Conflict: the organization has a user of that email, or does not admit its domain.
        """
        organization = await self._organizations.find(organization_id, lock=True)
        await self._settings.require_admitted(organization.organization_id, email)
        found = await self._roles.find(organization.environment_id, role) if role is not None else None
        row = OrganizationUserRow(
            user_id=new_identifier("usr", self._now),
            organization_id=organization.organization_id,
            email=email,
            name=name,
            role=found,
            created_at=int(self._now),
        )
        await add_row(self._session, row, "There is a user of that email. Call list_organization_users.")
        return _user(row)


def _user(row: OrganizationUserRow) -> OrganizationUser:
    return OrganizationUser(
        user_id=row.user_id,
        organization_id=row.organization_id,
        email=row.email,
        name=row.name,
        role=row.role.name if row.role is not None else None,
        created_at=row.created_at,
    )
