"""Environments of a workspace."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import EnvironmentRow
from gatehouse.directory.paging import NextPageToken, fetch_page
from gatehouse.directory.rows import MAX_PER_ENVIRONMENT, add_row, find_row, require_room, to_change
from gatehouse.directory.text import CreatedAt

EnvironmentKind = Literal["development", "staging", "production"]
EnvironmentName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$",
        description="Lower case letters, digits and inner hyphens, at most 63; unique in the workspace.",
    ),
]


class Environment(BaseModel):
    """An environment."""

    environment_id: str
    name: str
    kind: EnvironmentKind
    created_at: CreatedAt


class EnvironmentPage(BaseModel):
    """Environments, the oldest first."""

    environments: list[Environment]
    next_page_token: NextPageToken


class Environments:
    """The environments of one workspace; those of others do not exist here."""

    def __init__(self, session: AsyncSession, workspace_id: str, now: float) -> None:
        self._session = session
        self.workspace_id = workspace_id
        self._now = now

    async def page(self, page_token: str | None, page_size: int) -> EnvironmentPage:
        """Return one page. Raises DirectoryError for a page_token that is none."""
        rows, next_page_token = await fetch_page(
            self._session,
            select(EnvironmentRow).where(EnvironmentRow.workspace_id == self.workspace_id),
            EnvironmentRow.environment_id,
            "env",
            page_token,
            page_size,
        )
        return EnvironmentPage(environments=[_environment(row) for row in rows], next_page_token=next_page_token)

    async def get(self, environment_id: str) -> Environment:
        """Return one environment. Raises NotFound."""
        return _environment(await self.find(environment_id))

    async def find(self, environment_id: str, *, lock: bool = False) -> EnvironmentRow:
        """Return the row of an environment; locked, for a change to what belongs to it. Raises NotFound."""
        query = select(EnvironmentRow).where(
            EnvironmentRow.environment_id == environment_id, EnvironmentRow.workspace_id == self.workspace_id
        )
        return await find_row(self._session, to_change(query) if lock else query, "environment", "list_environments")

    async def create(self, name: str, kind: EnvironmentKind) -> Environment:
        """Create an environment. Raises Conflict when the name is taken."""
        row = EnvironmentRow(
            environment_id=new_identifier("env", self._now),
            workspace_id=self.workspace_id,
            name=name,
            kind=kind,
            created_at=int(self._now),
        )
        await add_row(
            self._session, row, "There is an environment of that name. Choose another, or call list_environments."
        )
        return _environment(row)


class PartOfEnvironments:
    """A kind of thing that belongs to the environments of one workspace."""

    def __init__(self, session: AsyncSession, environments: Environments, now: float) -> None:
        self._session = session
        self._environments = environments
        self._now = now

    async def _room_in(self, environment_id: str, owner: InstrumentedAttribute[str], things: str) -> str:
        """Lock an environment for one more row. Returns its identifier. Raises NotFound, LimitReached."""
        environment = await self._environments.find(environment_id, lock=True)
        await require_room(self._session, owner, environment.environment_id, MAX_PER_ENVIRONMENT, things)
        return environment.environment_id


def _environment(row: EnvironmentRow) -> Environment:
    return Environment.model_validate(row, from_attributes=True)
