"""Organizations."""

from typing import Annotated, Final

from pydantic import Field

from gatehouse.directory.directory import Directory
from gatehouse.directory.errors import Conflict, DirectoryError
from gatehouse.directory.identifiers import EnvironmentId, OrganizationId
from gatehouse.directory.organization_settings import (
    AllowedEmailDomains,
    MfaRequired,
    OrganizationDetails,
    OrganizationSettings,
    SessionLifetime,
)
from gatehouse.directory.organizations import (
    ExternalId,
    ImportedOrganization,
    NewOrganization,
    Organization,
    OrganizationImport,
    OrganizationPage,
)
from gatehouse.directory.paging import DEFAULT_PAGE_SIZE, PageSize, PageToken
from gatehouse.directory.text import DisplayName
from gatehouse.resourceserver.catalogue import Progress, ToolFailed, ToolGroup, Transactions

tools = ToolGroup()

IMPORT_BATCH: Final = 25
"""Organizations that an import creates in one transaction: some milliseconds, and one audit event."""


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


@tools.tool(scopes=["org:write"], read_only=False, idempotent=True, streaming=True)
async def import_organizations(
    transactions: Transactions,
    progress: Progress,
    environment_id: EnvironmentId,
    organizations: Annotated[
        list[NewOrganization], Field(min_length=1, max_length=1000, description="What to import, 1000 at most.")
    ],
) -> OrganizationImport:
    """Import up to 1000 organizations into one environment, and follow it by a progressToken.

    The answer tells what became of each, by its index in the call: created, exists (there is one of its external_id,
    which is left as it is), or failed, and why. To finish an import that broke off or failed in part, repeat the call:
    nothing is made twice.
    """
    items = list(enumerate(organizations))
    first = {item.external_id: index for index, item in reversed(items)}
    results: list[ImportedOrganization] = []
    await progress.report(0, len(items))
    for start in range(0, len(items), IMPORT_BATCH):
        batch = items[start : start + IMPORT_BATCH]
        try:
            imported = await _import_batch(
                transactions, environment_id, {index: item for index, item in batch if first[item.external_id] == index}
            )
        except (DirectoryError, ToolFailed) as error:
            if start == 0:
                raise
            results += [ImportedOrganization.failed(index, item, str(error)) for index, item in items[start:]]
            break
        results += [imported.get(index) or _repeated(index, item, first) for index, item in batch]
        await progress.report(len(results), len(items))
    return OrganizationImport.of(environment_id, results)


async def _import_batch(
    transactions: Transactions, environment_id: str, batch: dict[int, NewOrganization]
) -> dict[int, ImportedOrganization]:
    try:
        async with transactions.begin(Directory) as directory:
            return await directory.organizations.import_batch(environment_id, batch)
    except Conflict:
        # Another call created one of them meanwhile. A new transaction sees it.
        async with transactions.begin(Directory) as directory:
            return await directory.organizations.import_batch(environment_id, batch)


def _repeated(index: int, item: NewOrganization, first: dict[str, int]) -> ImportedOrganization:
    reason = f"The call has this external_id at index {first[item.external_id]} already."
    return ImportedOrganization.failed(index, item, reason)
