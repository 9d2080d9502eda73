"""Workspaces: the tenants. Admins create them, and a client acts in the one that its token names."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.directory.errors import Conflict
from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import WorkspaceRow
from gatehouse.shared.protocol.visible_text import check_display_name

MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant."""

    workspace_id: str
    name: str
    created_at: int


def create_workspace(session: Session, name: str, now: float) -> Workspace:
    """Create a workspace.

    Raises:
        Conflict: the name exists, is blank, is too long, or has a character that a person does not see.
    """
    try:
        check_display_name("workspace", name, MAX_NAME)
    except ValueError as error:
        raise Conflict(str(error)) from None
    if session.scalar(select(WorkspaceRow).where(WorkspaceRow.name == name)) is not None:
        raise Conflict("A workspace with that name exists. See: resourceserver workspace list")
    row = WorkspaceRow(workspace_id=new_identifier("wks", now), name=name, created_at=int(now))
    session.add(row)
    session.flush()
    return Workspace(row.workspace_id, row.name, row.created_at)


def list_workspaces(session: Session) -> list[Workspace]:
    """Return every workspace, the oldest first."""
    rows = session.scalars(select(WorkspaceRow).order_by(WorkspaceRow.workspace_id))
    return [Workspace(row.workspace_id, row.name, row.created_at) for row in rows]
