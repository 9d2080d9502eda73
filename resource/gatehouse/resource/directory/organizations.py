"""Organizations of an environment: the customers that an application serves there."""

from typing import Annotated

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.resource.directory.environments import Environments
from gatehouse.resource.directory.errors import NotFound
from gatehouse.resource.directory.identifiers import new_identifier
from gatehouse.resource.directory.paging import NextPageToken, fetch_page
from gatehouse.resource.directory.rows import add_row, find_row, to_change
from gatehouse.resource.directory.text import CreatedAt
from gatehouse.resource.store.models import EnvironmentRow, OrganizationRow

ExternalId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9._:-]{1,128}$",
        description="Your own identifier of the organization; unique in the environment.",
    ),
]


class Organization(BaseModel):
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


class Organizations:
    """The organizations of one workspace's environments."""

    def __init__(self, session: AsyncSession, environments: Environments, now: float) -> None:
        self._session = session
        self._environments = environments
        self._now = now

    async def page(self, environment_id: str, page_token: str | None, page_size: int) -> OrganizationPage:
        """Return one page. Raises NotFound for the environment, DirectoryError for a page_token that is none."""
        # The environment is looked up in the caller's workspace: that is what keeps tenants apart here.
        environment = await self._environments.get(environment_id)
        rows, next_page_token = await fetch_page(
            self._session,
            select(OrganizationRow).where(OrganizationRow.environment_id == environment.environment_id),
            OrganizationRow.organization_id,
            "org",
            page_token,
            page_size,
        )
        return OrganizationPage(organizations=[_organization(row) for row in rows], next_page_token=next_page_token)

    async def create(self, environment_id: str, name: str, external_id: str | None) -> Organization:
        """Create an organization. Raises NotFound for the environment, Conflict when the external_id is taken."""
        environment = await self._environments.get(environment_id)
        row = OrganizationRow(
            organization_id=new_identifier("org", self._now),
            environment_id=environment.environment_id,
            name=name,
            external_id=external_id,
            created_at=int(self._now),
        )
        await add_row(
            self._session,
            row,
            "There is an organization of that external_id. Choose another, or call list_organizations.",
        )
        return _organization(row)

    async def get(self, organization_id: str) -> Organization:
        """Return one organization. Raises NotFound."""
        return _organization(await self.find(organization_id))

    async def find(self, organization_id: str, *, lock: bool = False) -> OrganizationRow:
        """Return the row of an organization; locked, for a change to what belongs to it. Raises NotFound."""
        query = (
            select(OrganizationRow)
            .join(EnvironmentRow, EnvironmentRow.environment_id == OrganizationRow.environment_id)
            .where(
                OrganizationRow.organization_id == organization_id,
                EnvironmentRow.workspace_id == self._environments.workspace_id,
            )
        )
        return await find_row(self._session, to_change(query) if lock else query, "organization", "list_organizations")

    async def require_in(self, environment_id: str, organization_id: str) -> None:
        """Refuse an organization that is not in the environment. Raises NotFound."""
        organization = await self.find(organization_id)
        if organization.environment_id != environment_id:
            raise NotFound("organization", "list_organizations")


def _organization(row: OrganizationRow) -> Organization:
    return Organization.model_validate(row, from_attributes=True)
