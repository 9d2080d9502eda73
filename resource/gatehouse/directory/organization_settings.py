"""What an organization asks of the applications that sign its users in."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.directory.errors import Conflict
from gatehouse.directory.models import OrganizationSettingsRow
from gatehouse.directory.organizations import Organization, Organizations
from gatehouse.directory.rows import change_row
from gatehouse.directory.text import EmailDomain

DEFAULT_SESSION_LIFETIME: Final = 720
"""Minutes."""

MfaRequired = Annotated[bool, Field(description="Whether its users must show a second factor.")]
AllowedEmailDomains = Annotated[
    list[EmailDomain],
    Field(max_length=50, description="The email domains that new users may have; empty for any."),
]
SessionLifetime = Annotated[
    int, Field(ge=5, le=43200, description="Minutes after which a user signs in again: 5 to 43200, which is 30 days.")
]


class OrganizationSettings(BaseModel):
    """The settings of an organization."""

    organization_id: str
    mfa_required: MfaRequired
    allowed_email_domains: AllowedEmailDomains
    session_lifetime_minutes: SessionLifetime


class OrganizationDetails(Organization):
    """An organization and its settings."""

    settings: OrganizationSettings


class SettingsOfOrganizations:
    """The settings of one workspace's organizations."""

    def __init__(self, session: AsyncSession, organizations: Organizations) -> None:
        self._session = session
        self._organizations = organizations

    async def details(self, organization_id: str) -> OrganizationDetails:
        """Return an organization with its settings. Raises NotFound."""
        organization = await self._organizations.get(organization_id)
        settings = _settings(await self._find(organization.organization_id))
        return OrganizationDetails(**organization.model_dump(), settings=settings)

    async def update(self, organization_id: str, changes: Mapping[str, object]) -> OrganizationSettings:
        """Change what is not None among `changes`. Raises NotFound, DirectoryError for no change."""
        organization = await self._organizations.find(organization_id, lock=True)
        row = await self._find(organization.organization_id)
        change_row(row, changes)
        row.allowed_email_domains = sorted(set(row.allowed_email_domains))
        self._session.add(row)
        return _settings(row)

    async def require_admitted(self, organization_id: str, email: str) -> None:
        """Refuse an email of a domain that the organization does not admit. Raises Conflict."""
        domains = (await self._find(organization_id)).allowed_email_domains
        if domains and email.rpartition("@")[2] not in domains:
            raise Conflict("The organization does not admit that email domain. Call get_organization_details.")

    async def _find(self, organization_id: str) -> OrganizationSettingsRow:
        """Return the row of an organization that is the caller's, or a new one with the defaults."""
        return await self._session.get(OrganizationSettingsRow, organization_id) or OrganizationSettingsRow(
            organization_id=organization_id,
            mfa_required=False,
            allowed_email_domains=[],
            session_lifetime_minutes=DEFAULT_SESSION_LIFETIME,
        )


def _settings(row: OrganizationSettingsRow) -> OrganizationSettings:
    return OrganizationSettings.model_validate(row, from_attributes=True)
