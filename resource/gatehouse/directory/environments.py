"""Environments of a workspace."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field
from sqlalchemy import bindparam, select
from sqlalchemy.orm import InstrumentedAttribute

from gatehouse.directory.directory import (
    DEFAULT_PAGE_SIZE,
    MAX_PER_ENVIRONMENT,
    Directory,
    Entity,
    Listing,
    NextPageToken,
    PageSize,
    PageToken,
    locked,
)
from gatehouse.directory.identifiers import EnvironmentId
from gatehouse.directory.models import EnvironmentRow
from gatehouse.directory.text import CreatedAt
from gatehouse.resourceserver.catalogue import ToolGroup

EnvironmentKind = Literal["development", "staging", "production"]
EnvironmentName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$",
        description="Lower case letters, digits and inner hyphens, at most 63; unique in the workspace.",
    ),
]

tools = ToolGroup()


class Environment(Entity):
    """An environment."""

    environment_id: str
    name: str
    kind: EnvironmentKind
    created_at: CreatedAt


class EnvironmentPage(BaseModel):
    """Environments, the oldest first."""

    environments: list[Environment]
    next_page_token: NextPageToken


_ENVIRONMENT: Final = select(EnvironmentRow).where(
    EnvironmentRow.environment_id == bindparam("environment_id"),
    EnvironmentRow.workspace_id == bindparam("workspace_id"),
)
_OF_WORKSPACE: Final = Listing(EnvironmentPage, EnvironmentRow.workspace_id, EnvironmentRow.environment_id, "env")


def find_environment(directory: Directory, environment_id: str, *, lock: bool = False) -> EnvironmentRow:
    """Return an environment of the workspace, locked if what belongs to it is to change. Raises NotFound."""
    return directory.find(
        locked(_ENVIRONMENT) if lock else _ENVIRONMENT,
        "environment",
        "list_environments",
        environment_id=environment_id,
        workspace_id=directory.workspace_id,
    )


def require_room_in(directory: Directory, environment_id: str, owner: InstrumentedAttribute[str], things: str) -> None:
    """Lock an environment, and check that it may have one more row. Raises NotFound, LimitReached.

    `owner` is the column with the rows' environment_id, and `things` says what they are.
    """
    find_environment(directory, environment_id, lock=True)
    directory.require_room(owner, environment_id, MAX_PER_ENVIRONMENT, f"{things} in an environment")


@tools.tool(scopes=["env:read"], read_only=True)
def list_environments(
    directory: Directory, page_token: PageToken | None = None, page_size: PageSize = DEFAULT_PAGE_SIZE
) -> EnvironmentPage:
    """List the environments of your workspace, the oldest first.

    Other tools accept the environment_id from here. If next_page_token is not null, call again with it as page_token.
    """
    return _OF_WORKSPACE.read(directory, directory.workspace_id, page_token, page_size)


@tools.tool(scopes=["env:read"], read_only=True)
def get_environment_details(directory: Directory, environment_id: EnvironmentId) -> Environment:
    """Get one environment of your workspace by its environment_id."""
    return Environment.model_validate(find_environment(directory, environment_id))


@tools.tool(scopes=["env:write"], read_only=False)
def create_environment(
    directory: Directory, name: EnvironmentName, kind: EnvironmentKind = "development"
) -> Environment:
    """Create an environment in your workspace.

    The name must be new in the workspace; check with list_environments first. The result contains the environment_id
    that create_organization needs.
    """
    directory.require_workspace()
    row = EnvironmentRow(
        environment_id=directory.new_identifier("env"),
        workspace_id=directory.workspace_id,
        name=name,
        kind=kind,
        created_at=int(directory.now),
    )
    directory.insert("An environment with that name exists. Choose another name, or call list_environments.", row)
    return Environment.model_validate(row)
