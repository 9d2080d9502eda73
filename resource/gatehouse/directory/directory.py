"""The directory as one caller sees it: a workspace and what is in it."""

from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.directory.connections import Connections
from gatehouse.directory.environment_roles import EnvironmentRoles
from gatehouse.directory.environment_scopes import EnvironmentScopes
from gatehouse.directory.environments import Environments
from gatehouse.directory.errors import DirectoryError, NoWorkspace
from gatehouse.directory.identifiers import is_identifier
from gatehouse.directory.mcp_servers import McpServers
from gatehouse.directory.models import WorkspaceRow
from gatehouse.directory.organization_settings import SettingsOfOrganizations
from gatehouse.directory.organization_users import OrganizationUsers
from gatehouse.directory.organizations import Organizations
from gatehouse.directory.redirect_uris import RedirectUris
from gatehouse.directory.workspace_members import WorkspaceMembers
from gatehouse.resourceserver.catalogue import ProviderCall, provider


class Directory:
    """One workspace, within one transaction. Nothing of another workspace can be reached through it."""

    def __init__(self, session: AsyncSession, workspace_id: str, now: float) -> None:
        self.members = WorkspaceMembers(session, workspace_id, now)
        self.environments = Environments(session, workspace_id, now)
        self.roles = EnvironmentRoles(session, self.environments, now)
        self.scopes = EnvironmentScopes(session, self.environments, now)
        self.redirect_uris = RedirectUris(session, self.environments, now)
        self.mcp_servers = McpServers(session, self.environments, self.scopes, now)
        self.organizations = Organizations(session, self.environments, now)
        self.organization_settings = SettingsOfOrganizations(session, self.organizations)
        self.organization_users = OrganizationUsers(
            session, self.organizations, self.organization_settings, self.roles, now
        )
        self.connections = Connections(session, self.environments, self.organizations, now)


@provider(transactional=True, public_errors=(DirectoryError,), audited=is_identifier)
async def open_directory(call: ProviderCall) -> Directory:
    """Open the workspace that the caller's token names.

    Raises:
        NoWorkspace: it names none, or one that does not exist.
    """
    workspace_id = call.claims.workspace_id
    if workspace_id is None or await call.session.get(WorkspaceRow, workspace_id) is None:
        raise NoWorkspace(call.claims)
    return Directory(call.session, workspace_id, call.now)
