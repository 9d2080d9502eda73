"""Settings of an organization: what it requires of the applications that its users sign in to."""

from typing import Annotated, Final

from pydantic import Field

from gatehouse.directory.directory import Directory, Entity, change_row
from gatehouse.directory.identifiers import OrganizationId
from gatehouse.directory.models import OrganizationSettingsRow
from gatehouse.directory.organizations import Organization, find_organization
from gatehouse.directory.text import EmailDomain
from gatehouse.resourceserver.catalogue import ToolGroup

DEFAULT_SESSION_LIFETIME: Final = 720
"""Minutes."""

MfaRequired = Annotated[bool, Field(description="Whether its users must use a second factor.")]
AllowedEmailDomains = Annotated[
    list[EmailDomain],
    Field(max_length=50, description="Email domains allowed for new users; empty for any."),
]
SessionLifetime = Annotated[
    int, Field(ge=5, le=43200, description="Minutes after which a user signs in again: 5 to 43200, which is 30 days.")
]

tools = ToolGroup()


class OrganizationSettings(Entity):
    """The settings of an organization."""

    organization_id: str
    mfa_required: MfaRequired
    allowed_email_domains: AllowedEmailDomains
    session_lifetime_minutes: SessionLifetime


class OrganizationDetails(Organization):
    """An organization and its settings."""

    settings: OrganizationSettings


def find_settings(directory: Directory, organization_id: str) -> OrganizationSettingsRow:
    """Return the settings of an organization of the workspace: its row, or a new one with the defaults."""
    return directory.session.get(OrganizationSettingsRow, organization_id) or OrganizationSettingsRow(
        organization_id=organization_id,
        mfa_required=False,
        allowed_email_domains=[],
        session_lifetime_minutes=DEFAULT_SESSION_LIFETIME,
    )


@tools.tool(scopes=["org:read"], read_only=True)
def get_organization_details(directory: Directory, organization_id: OrganizationId) -> OrganizationDetails:
    """Get one organization by its organization_id, with its settings."""
    organization = Organization.model_validate(find_organization(directory, organization_id))
    settings = OrganizationSettings.model_validate(find_settings(directory, organization_id))
    return OrganizationDetails(**organization.model_dump(), settings=settings)


@tools.tool(scopes=["org:write"], read_only=False, destructive=True, idempotent=True)
def update_organization_settings(
    directory: Directory,
    organization_id: OrganizationId,
    mfa_required: MfaRequired | None = None,
    allowed_email_domains: AllowedEmailDomains | None = None,
    session_lifetime_minutes: SessionLifetime | None = None,
) -> OrganizationSettings:
    """Change settings of one organization. Settings that you omit keep their values.

    allowed_email_domains replaces the whole list and applies only to new users. get_organization_details returns the
    current settings.
    """
    find_organization(directory, organization_id, lock=True)
    row = find_settings(directory, organization_id)
    changes = {
        "mfa_required": mfa_required,
        "allowed_email_domains": allowed_email_domains,
        "session_lifetime_minutes": session_lifetime_minutes,
    }
    change_row(row, changes)
    row.allowed_email_domains = sorted(set(row.allowed_email_domains))
    directory.session.add(row)
    return OrganizationSettings.model_validate(row)
