"""Scopes of an environment."""

from collections.abc import Iterable
from typing import Final

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
)
from gatehouse.directory.environments import find_environment, require_room_in
from gatehouse.directory.errors import NotFound
from gatehouse.directory.identifiers import EnvironmentId
from gatehouse.directory.models import EnvironmentScopeRow
from gatehouse.directory.text import CreatedAt, Description, ScopeName
from gatehouse.resourceserver.catalogue import ToolGroup

tools = ToolGroup()


class EnvironmentScope(Entity):
    """A scope that an environment's MCP servers can offer."""

    scope_id: str
    environment_id: str
    name: str
    description: str
    created_at: CreatedAt


class EnvironmentScopePage(BaseModel):
    """Scopes, the oldest first."""

    scopes: list[EnvironmentScope]
    next_page_token: NextPageToken


_OF_ENVIRONMENT: Final = Listing(
    EnvironmentScopePage, EnvironmentScopeRow.environment_id, EnvironmentScopeRow.scope_id, "scp"
)


def require_scopes(directory: Directory, environment_id: str, names: Iterable[str]) -> list[str]:
    """Return the names sorted and without duplicates. Raises NotFound if one is not a scope of the environment.

    The environment must be one of the workspace.
    """
    wanted = sorted(set(names))
    query = select(EnvironmentScopeRow.name).where(
        EnvironmentScopeRow.environment_id == environment_id, EnvironmentScopeRow.name.in_(wanted)
    )
    if len((directory.session.scalars(query)).all()) < len(wanted):
        raise NotFound("scope", "list_environment_scopes")
    return wanted


@tools.tool(scopes=["env:read"], read_only=True)
def list_environment_scopes(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> EnvironmentScopePage:
    """List the scopes that MCP servers of one environment can offer, the oldest first.

    register_mcp_server accepts their names. If next_page_token is not null, call again with it as page_token.
    """
    find_environment(directory, environment_id)
    return _OF_ENVIRONMENT.read(directory, environment_id, page_token, page_size)


@tools.tool(scopes=["env:write"], read_only=False)
def create_environment_scope(
    directory: Directory, environment_id: EnvironmentId, name: ScopeName, description: Description = ""
) -> EnvironmentScope:
    """Create a scope in one environment, for its MCP servers to offer.

    The name must be new there; check with list_environment_scopes first. This does not change your own scopes.
    """
    require_room_in(directory, environment_id, EnvironmentScopeRow.environment_id, "scopes")
    row = EnvironmentScopeRow(
        scope_id=directory.new_identifier("scp"),
        environment_id=environment_id,
        name=name,
        description=description,
        created_at=int(directory.now),
    )
    directory.insert("A scope with that name exists. Choose another name, or use that scope.", row)
    return EnvironmentScope.model_validate(row)
