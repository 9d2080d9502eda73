"""The directory as one caller sees it: a workspace and what is in it."""

from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.resource.directory.environments import Environments
from gatehouse.resource.directory.errors import NoWorkspace
from gatehouse.resource.directory.organizations import Organizations
from gatehouse.resource.store.models import WorkspaceRow
from gatehouse.shared.claims import AccessClaims


class Directory:
    """One workspace, within one transaction. Nothing of another workspace can be reached through it."""

    def __init__(self, session: AsyncSession, workspace_id: str, now: float) -> None:
        self.environments = Environments(session, workspace_id, now)
        self.organizations = Organizations(session, self.environments, now)


async def open_directory(session: AsyncSession, claims: AccessClaims, now: float) -> Directory:
    """Open the workspace that a verified token names.

    Raises:
        NoWorkspace: it names none, or one that does not exist.
    """
    if claims.workspace_id is None or await session.get(WorkspaceRow, claims.workspace_id) is None:
        raise NoWorkspace(claims)
    return Directory(session, claims.workspace_id, now)
