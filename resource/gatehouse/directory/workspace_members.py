"""Members of a workspace: the people who were invited to it."""

from typing import Final, Literal

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import WorkspaceMemberRow, WorkspaceRow
from gatehouse.directory.paging import NextPageToken, fetch_page
from gatehouse.directory.rows import add_row, find_row, require_room, to_change
from gatehouse.directory.text import CreatedAt

MAX_MEMBERS: Final = 1000

MemberRole = Literal["admin", "member"]
MemberStatus = Literal["invited", "active"]


class WorkspaceMember(BaseModel):
    """A member of the workspace."""

    user_id: str
    email: str
    role: MemberRole
    status: MemberStatus
    created_at: CreatedAt


class WorkspaceMemberPage(BaseModel):
    """Members, the first invited first."""

    members: list[WorkspaceMember]
    next_page_token: NextPageToken


class WorkspaceMembers:
    """The members of one workspace."""

    def __init__(self, session: AsyncSession, workspace_id: str, now: float) -> None:
        self._session = session
        self._workspace_id = workspace_id
        self._now = now

    async def page(self, page_token: str | None, page_size: int) -> WorkspaceMemberPage:
        """Return one page. Raises DirectoryError for a page_token that is none."""
        rows, next_page_token = await fetch_page(
            self._session,
            select(WorkspaceMemberRow).where(WorkspaceMemberRow.workspace_id == self._workspace_id),
            WorkspaceMemberRow.user_id,
            "usr",
            page_token,
            page_size,
        )
        return WorkspaceMemberPage(members=[_member(row) for row in rows], next_page_token=next_page_token)

    async def invite(self, email: str, role: MemberRole) -> WorkspaceMember:
        """Record an invitation. Raises Conflict for an email that is a member's, LimitReached."""
        workspace = select(WorkspaceRow).where(WorkspaceRow.workspace_id == self._workspace_id)
        await self._session.execute(to_change(workspace))
        owner = WorkspaceMemberRow.workspace_id
        await require_room(self._session, owner, self._workspace_id, MAX_MEMBERS, "members in a workspace")
        row = WorkspaceMemberRow(
            user_id=new_identifier("usr", self._now),
            workspace_id=self._workspace_id,
            email=email,
            role=role,
            status="invited",
            created_at=int(self._now),
        )
        await add_row(self._session, row, "There is a member of that email. Call list_workspace_members.")
        return _member(row)

    async def remove(self, user_id: str) -> WorkspaceMember:
        """Remove a member and return what it was. Raises NotFound."""
        query = select(WorkspaceMemberRow).where(
            WorkspaceMemberRow.user_id == user_id, WorkspaceMemberRow.workspace_id == self._workspace_id
        )
        row = await find_row(self._session, to_change(query), "member", "list_workspace_members")
        removed = _member(row)
        await self._session.delete(row)
        return removed


def _member(row: WorkspaceMemberRow) -> WorkspaceMember:
    return WorkspaceMember.model_validate(row, from_attributes=True)
