"""Organizations of an environment: the customers that an application serves there."""

from typing import Annotated

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.resource.directory.environments import Environments
from gatehouse.resource.directory.errors import Conflict
from gatehouse.resource.directory.identifiers import new_identifier
from gatehouse.resource.directory.paging import fetch_page
from gatehouse.resource.store.models import OrganizationRow

OrganizationName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$",
        description="What people call it; no control characters.",
    ),
]
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
    created_at: int = Field(description="Seconds since 1970-01-01T00:00:00Z.")


class OrganizationPage(BaseModel):
    """Organizations, the oldest first."""

    organizations: list[Organization]
    next_page_token: str | None = Field(description="Token of the next page; null at the end.")


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
        self._session.add(row)
        try:
            await self._session.flush()
        except IntegrityError:
            raise Conflict(
                "There is an organization of that external_id. Choose another, or call list_organizations."
            ) from None
        return _organization(row)


def _organization(row: OrganizationRow) -> Organization:
    return Organization.model_validate(row, from_attributes=True)
