"""Members of a workspace, including invited people."""

from typing import Final, Literal

from pydantic import BaseModel
from sqlalchemy import select

from gatehouse.directory.directory import (
    DEFAULT_PAGE_SIZE,
    Directory,
    Entity,
    Listing,
    NextPageToken,
    PageSize,
    PageToken,
    locked,
)
from gatehouse.directory.identifiers import MemberId
from gatehouse.directory.models import WorkspaceMemberRow
from gatehouse.directory.text import CreatedAt, EmailAddress
from gatehouse.resourceserver.catalogue import ToolGroup

MAX_MEMBERS: Final = 1000

MemberRole = Literal["admin", "member"]
MemberStatus = Literal["invited", "active"]

tools = ToolGroup()


class WorkspaceMember(Entity):
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


_OF_WORKSPACE: Final = Listing(WorkspaceMemberPage, WorkspaceMemberRow.workspace_id, WorkspaceMemberRow.user_id, "usr")


@tools.tool(scopes=["wks:read"], read_only=True)
def list_workspace_members(
    directory: Directory, page_token: PageToken | None = None, page_size: PageSize = DEFAULT_PAGE_SIZE
) -> WorkspaceMemberPage:
    """List the members of your workspace, including invited people, the first invited first.

    If next_page_token is not null, call again with it as page_token.
    """
    return _OF_WORKSPACE.read(directory, directory.workspace_id, page_token, page_size)


@tools.tool(scopes=["wks:write"], read_only=False)
def invite_workspace_member(directory: Directory, email: EmailAddress, role: MemberRole = "member") -> WorkspaceMember:
    """Record the invitation of a person to your workspace. No email is sent: tell the person yourself.

    The email must be new in the workspace; check with list_workspace_members first.
    """
    directory.require_workspace(lock=True)
    owner = WorkspaceMemberRow.workspace_id
    directory.require_room(owner, directory.workspace_id, MAX_MEMBERS, "members in a workspace")
    row = WorkspaceMemberRow(
        user_id=directory.new_identifier("usr"),
        workspace_id=directory.workspace_id,
        email=email,
        role=role,
        status="invited",
        created_at=int(directory.now),
    )
    directory.insert("A member with that email exists. Call list_workspace_members.", row)
    return WorkspaceMember.model_validate(row)


@tools.tool(scopes=["wks:write"], read_only=False, destructive=True, idempotent=True)
def remove_workspace_member(directory: Directory, user_id: MemberId) -> WorkspaceMember:
    """Remove a member or revoke an invitation, and return what was removed. This cannot be undone.

    Get the user_id from list_workspace_members, and make sure that it is the person you mean.
    """
    query = select(WorkspaceMemberRow).where(
        WorkspaceMemberRow.user_id == user_id, WorkspaceMemberRow.workspace_id == directory.workspace_id
    )
    row = directory.find(locked(query), "member", "list_workspace_members")
    removed = WorkspaceMember.model_validate(row)
    directory.session.delete(row)
    return removed
