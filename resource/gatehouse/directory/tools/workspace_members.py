"""Members of the workspace."""

from gatehouse.directory.directory import Directory
from gatehouse.directory.identifiers import MemberId
from gatehouse.directory.paging import DEFAULT_PAGE_SIZE, PageSize, PageToken
from gatehouse.directory.text import EmailAddress
from gatehouse.directory.workspace_members import MemberRole, WorkspaceMember, WorkspaceMemberPage
from gatehouse.resourceserver.catalogue import ToolGroup

tools = ToolGroup()


@tools.tool(scopes=["wks:read"], read_only=True)
async def list_workspace_members(
    directory: Directory, page_token: PageToken | None = None, page_size: PageSize = DEFAULT_PAGE_SIZE
) -> WorkspaceMemberPage:
    """List the people in your workspace and those who were invited, the first invited first.

    When next_page_token is not null, call again with it as page_token.
    """
    return await directory.members.page(page_token, page_size)


@tools.tool(scopes=["wks:write"], read_only=False)
async def invite_workspace_member(
    directory: Directory, email: EmailAddress, role: MemberRole = "member"
) -> WorkspaceMember:
    """Record the invitation of a person to your workspace. No email is sent: tell the person yourself.

    The email must be new in the workspace; look with list_workspace_members first.
    """
    return await directory.members.invite(email, role)


@tools.tool(scopes=["wks:write"], read_only=False, destructive=True, idempotent=True)
async def remove_workspace_member(directory: Directory, user_id: MemberId) -> WorkspaceMember:
    """Remove a member, or take an invitation back. The answer is what was removed; it cannot be undone.

    Take the user_id from list_workspace_members, and make sure that it is the person you mean.
    """
    return await directory.members.remove(user_id)
