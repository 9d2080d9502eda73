"""The import of organizations: a streaming tool that works in small transactions."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from gatehouse.directory.directory import Directory
from gatehouse.directory.environments import find_environment
from gatehouse.directory.errors import Conflict, DirectoryError
from gatehouse.directory.identifiers import EnvironmentId
from gatehouse.directory.models import OrganizationRow
from gatehouse.directory.organizations import CONFLICT, ExternalId, new_organization
from gatehouse.directory.text import DisplayName
from gatehouse.resourceserver.catalogue import Progress, ToolFailed, ToolGroup, Transactions

IMPORT_BATCH: Final = 25
"""Organizations created in one transaction, which lasts some milliseconds and has one audit event."""

tools = ToolGroup()


class NewOrganization(BaseModel):
    """An organization to import."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: DisplayName
    external_id: ExternalId


class ImportedOrganization(BaseModel):
    """The outcome of one organization of an import."""

    index: int = Field(description="Its position in the call, from 0.")
    external_id: str
    status: Literal["created", "exists", "failed"]
    organization_id: str | None = Field(description="Null if it failed.")
    reason: str | None = Field(description="Why it failed, or how an existing one differs; null otherwise.")

    @classmethod
    def failed(cls, index: int, item: NewOrganization, reason: str) -> "ImportedOrganization":
        """Return the outcome of an organization that was not imported."""
        return cls(index=index, external_id=item.external_id, status="failed", organization_id=None, reason=reason)


class OrganizationImport(BaseModel):
    """The outcome of an import, one entry for each organization, in the order of the call."""

    environment_id: str
    created: int
    exists: int
    failed: int
    organizations: list[ImportedOrganization]

    @classmethod
    def of(cls, environment_id: str, organizations: list[ImportedOrganization]) -> "OrganizationImport":
        """Count the outcomes."""
        statuses = Counter(organization.status for organization in organizations)
        return cls(
            environment_id=environment_id,
            created=statuses["created"],
            exists=statuses["exists"],
            failed=statuses["failed"],
            organizations=organizations,
        )


@tools.tool(scopes=["org:write"], read_only=False, idempotent=True, streaming=True)
async def import_organizations(
    transactions: Transactions,
    progress: Progress,
    environment_id: EnvironmentId,
    organizations: Annotated[
        list[NewOrganization], Field(min_length=1, max_length=1000, description="Organizations to import, up to 1000.")
    ],
) -> OrganizationImport:
    """Import up to 1000 organizations into one environment. Send a progressToken to receive progress.

    The result states the outcome of each organization by its index in the call: created, exists (one with its
    external_id exists and stays unchanged), or failed, with the reason. To complete an import that was interrupted or
    failed in part, repeat the call: no organization is created twice.
    """
    items = list(enumerate(organizations))
    first = {item.external_id: index for index, item in reversed(items)}
    results: list[ImportedOrganization] = []
    await progress.report(0, len(items))
    for start in range(0, len(items), IMPORT_BATCH):
        batch = items[start : start + IMPORT_BATCH]
        unique = {index: item for index, item in batch if first[item.external_id] == index}
        try:
            imported = await _import_with_retry(transactions, environment_id, unique)
        except (DirectoryError, ToolFailed) as error:
            if start == 0:
                raise
            results += [ImportedOrganization.failed(index, item, str(error)) for index, item in items[start:]]
            break
        results += [imported.get(index) or _repeated(index, item, first) for index, item in batch]
        await progress.report(len(results), len(items))
    return OrganizationImport.of(environment_id, results)


async def _import_with_retry(
    transactions: Transactions, environment_id: str, batch: Mapping[int, NewOrganization]
) -> dict[int, ImportedOrganization]:
    try:
        return await transactions.run(Directory, import_batch, environment_id, batch)
    except Conflict:
        # A concurrent call created one of them. A new transaction sees it.
        return await transactions.run(Directory, import_batch, environment_id, batch)


def import_batch(
    directory: Directory, environment_id: str, batch: Mapping[int, NewOrganization]
) -> dict[int, ImportedOrganization]:
    """Create the organizations whose external_id is new in the environment; existing ones stay unchanged.

    Args:
        directory: the caller's workspace, in a transaction.
        environment_id: the environment.
        batch: organizations by their index in the call, with distinct external_ids.

    Raises:
        NotFound: the workspace has no such environment.
        Conflict: a concurrent transaction created one of them. This transaction created none.
    """
    find_environment(directory, environment_id)
    query = select(OrganizationRow).where(
        OrganizationRow.environment_id == environment_id,
        OrganizationRow.external_id.in_([item.external_id for item in batch.values()]),
    )
    existing = {row.external_id: row for row in directory.session.scalars(query)}
    # Sorted, so that two imports of the same organizations lock rows in one order and cannot deadlock.
    new = sorted((item.external_id, item.name) for item in batch.values() if item.external_id not in existing)
    created = {external_id: new_organization(directory, environment_id, name, external_id) for external_id, name in new}
    directory.insert(CONFLICT, *created.values())
    return {index: _imported(index, item, created, existing) for index, item in batch.items()}


def _imported(
    index: int,
    item: NewOrganization,
    created: Mapping[str, OrganizationRow],
    existing: Mapping[str | None, OrganizationRow],
) -> ImportedOrganization:
    row = created.get(item.external_id) or existing[item.external_id]
    return ImportedOrganization(
        index=index,
        external_id=item.external_id,
        status="created" if item.external_id in created else "exists",
        organization_id=row.organization_id,
        reason=None if row.name == item.name else "It has another name, which was not changed.",
    )


def _repeated(index: int, item: NewOrganization, first: Mapping[str, int]) -> ImportedOrganization:
    reason = f"The call has this external_id at index {first[item.external_id]} already."
    return ImportedOrganization.failed(index, item, reason)
