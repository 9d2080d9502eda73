"""Organizations of an environment: the customers that an application serves there."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.directory.environments import Environments
from gatehouse.directory.errors import NotFound
from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import EnvironmentRow, OrganizationRow
from gatehouse.directory.paging import NextPageToken, fetch_page
from gatehouse.directory.rows import find_row, to_change, write_changes
from gatehouse.directory.text import CreatedAt, DisplayName

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


class NewOrganization(BaseModel):
    """An organization to import."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: DisplayName
    external_id: ExternalId


class ImportedOrganization(BaseModel):
    """What became of one organization of an import."""

    index: int = Field(description="Its place in the call, from 0.")
    external_id: str
    status: Literal["created", "exists", "failed"]
    organization_id: str | None = Field(description="Null when it failed.")
    reason: str | None = Field(description="Why it failed, or how one that exists differs; null otherwise.")

    @classmethod
    def failed(cls, index: int, item: NewOrganization, reason: str) -> "ImportedOrganization":
        """Say why an organization was not imported."""
        return cls(index=index, external_id=item.external_id, status="failed", organization_id=None, reason=reason)


class OrganizationImport(BaseModel):
    """What became of an import, organization by organization, in the order of the call."""

    environment_id: str
    created: int
    exists: int
    failed: int
    organizations: list[ImportedOrganization]

    @classmethod
    def of(cls, environment_id: str, organizations: list[ImportedOrganization]) -> "OrganizationImport":
        """Count what became of each."""
        statuses = Counter(organization.status for organization in organizations)
        return cls(
            environment_id=environment_id,
            created=statuses["created"],
            exists=statuses["exists"],
            failed=statuses["failed"],
            organizations=organizations,
        )


class Organizations:
    """The organizations of one workspace's environments."""

    def __init__(self, session: AsyncSession, environments: Environments, now: float) -> None:
        self._session = session
        self._environments = environments
        self._now = now

    async def page(self, environment_id: str, page_token: str | None, page_size: int) -> OrganizationPage:
        """Return one page. Raises NotFound for the environment, DirectoryError for a page_token that is none."""
        # The environment is looked up in the caller's workspace: that is what keeps tenants apart here.
        environment = await self._environments.find(environment_id)
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
        environment = await self._environments.find(environment_id)
        row = self._new_row(environment.environment_id, name, external_id)
        await self._add([row])
        return _organization(row)

    async def import_batch(
        self, environment_id: str, batch: Mapping[int, NewOrganization]
    ) -> dict[int, ImportedOrganization]:
        """Create those whose external_id is new in the environment, and leave the others as they are.

        `batch` is by place in the call, and has each external_id once. Raises NotFound for the environment, Conflict
        when another transaction created one of them meanwhile: then nothing was created, and a new one sees it.
        """
        environment = await self._environments.find(environment_id)
        there = await self._by_external_id(environment.environment_id, [item.external_id for item in batch.values()])
        # In one order, so that two imports of the same organizations wait for each other, and not both for ever.
        new = sorted((item.external_id, item.name) for item in batch.values() if item.external_id not in there)
        made = {external_id: self._new_row(environment.environment_id, name, external_id) for external_id, name in new}
        await self._add(made.values())
        return {index: _imported(index, item, made, there) for index, item in batch.items()}

    async def _by_external_id(
        self, environment_id: str, external_ids: Collection[str]
    ) -> dict[str | None, OrganizationRow]:
        rows = await self._session.scalars(
            select(OrganizationRow).where(
                OrganizationRow.environment_id == environment_id,
                OrganizationRow.external_id.in_(external_ids),
            )
        )
        return {row.external_id: row for row in rows}

    def _new_row(self, environment_id: str, name: str, external_id: str | None) -> OrganizationRow:
        return OrganizationRow(
            organization_id=new_identifier("org", self._now),
            environment_id=environment_id,
            name=name,
            external_id=external_id,
            created_at=int(self._now),
        )

    async def _add(self, rows: Collection[OrganizationRow]) -> None:
        self._session.add_all(rows)
        await write_changes(
            self._session, "There is an organization of that external_id. Choose another, or call list_organizations."
        )

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


def _imported(
    index: int,
    item: NewOrganization,
    made: Mapping[str, OrganizationRow],
    there: Mapping[str | None, OrganizationRow],
) -> ImportedOrganization:
    row = made.get(item.external_id) or there[item.external_id]
    return ImportedOrganization(
        index=index,
        external_id=item.external_id,
        status="created" if item.external_id in made else "exists",
        organization_id=row.organization_id,
        reason=None if row.name == item.name else "It has another name, which was left as it is.",
    )
