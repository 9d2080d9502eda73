"""Scopes of an environment."""

from collections.abc import Iterable

from pydantic import BaseModel
from sqlalchemy import select

from gatehouse.directory.environments import PartOfEnvironments
from gatehouse.directory.errors import NotFound
from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import EnvironmentScopeRow
from gatehouse.directory.paging import NextPageToken, fetch_page
from gatehouse.directory.rows import add_row
from gatehouse.directory.text import CreatedAt


class EnvironmentScope(BaseModel):
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


class EnvironmentScopes(PartOfEnvironments):
    """The scopes of one workspace's environments."""

    async def page(self, environment_id: str, page_token: str | None, page_size: int) -> EnvironmentScopePage:
        """Return one page. Raises NotFound for the environment, DirectoryError for a page_token that is none."""
        environment = await self._environments.find(environment_id)
        rows, next_page_token = await fetch_page(
            self._session,
            select(EnvironmentScopeRow).where(EnvironmentScopeRow.environment_id == environment.environment_id),
            EnvironmentScopeRow.scope_id,
            "scp",
            page_token,
            page_size,
        )
        return EnvironmentScopePage(scopes=[_scope(row) for row in rows], next_page_token=next_page_token)

    async def create(self, environment_id: str, name: str, description: str) -> EnvironmentScope:
        """Create a scope. Raises NotFound for the environment, Conflict for a name that is taken, LimitReached."""
        owner = EnvironmentScopeRow.environment_id
        row = EnvironmentScopeRow(
            scope_id=new_identifier("scp", self._now),
            environment_id=await self._room_in(environment_id, owner, "scopes in an environment"),
            name=name,
            description=description,
            created_at=int(self._now),
        )
        await add_row(self._session, row, "There is a scope of that name. Choose another, or use that one.")
        return _scope(row)

    async def require(self, environment_id: str, names: Iterable[str]) -> list[str]:
        """Return the names, sorted and each once. Raises NotFound when one is no scope of the caller's environment."""
        wanted = sorted(set(names))
        query = select(EnvironmentScopeRow.name).where(
            EnvironmentScopeRow.environment_id == environment_id, EnvironmentScopeRow.name.in_(wanted)
        )
        if len((await self._session.scalars(query)).all()) < len(wanted):
            raise NotFound("scope", "list_environment_scopes")
        return wanted


def _scope(row: EnvironmentScopeRow) -> EnvironmentScope:
    return EnvironmentScope.model_validate(row, from_attributes=True)
