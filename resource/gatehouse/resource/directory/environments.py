"""Environments of a workspace."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.resource.directory.errors import Conflict, NotFound
from gatehouse.resource.directory.identifiers import new_identifier
from gatehouse.resource.directory.paging import fetch_page
from gatehouse.resource.store.models import EnvironmentRow

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
    created_at: int = Field(description="Seconds since 1970-01-01T00:00:00Z.")


class EnvironmentPage(BaseModel):
    """Environments, the oldest first."""

    environments: list[Environment]
    next_page_token: str | None = Field(description="Token of the next page; null at the end.")


class Environments:
    """The environments of one workspace; those of others do not exist here."""

    def __init__(self, session: AsyncSession, workspace_id: str, now: float) -> None:
        self._session = session
        self._workspace_id = workspace_id
        self._now = now

    async def page(self, page_token: str | None, page_size: int) -> EnvironmentPage:
        """Return one page. Raises DirectoryError for a page_token that is none."""
        rows, next_page_token = await fetch_page(
            self._session,
            select(EnvironmentRow).where(EnvironmentRow.workspace_id == self._workspace_id),
            EnvironmentRow.environment_id,
            "env",
            page_token,
            page_size,
        )
        return EnvironmentPage(environments=[_environment(row) for row in rows], next_page_token=next_page_token)

    async def get(self, environment_id: str) -> Environment:
        """Return one environment. Raises NotFound."""
        row = await self._session.scalar(
            select(EnvironmentRow).where(
                EnvironmentRow.environment_id == environment_id, EnvironmentRow.workspace_id == self._workspace_id
            )
        )
        if row is None:
            raise NotFound("environment", "list_environments")
        return _environment(row)

    async def create(self, name: str, kind: EnvironmentKind) -> Environment:
        """Create an environment. Raises Conflict when the name is taken."""
        row = EnvironmentRow(
            environment_id=new_identifier("env", self._now),
            workspace_id=self._workspace_id,
            name=name,
            kind=kind,
            created_at=int(self._now),
        )
        self._session.add(row)
        try:
            await self._session.flush()
        except IntegrityError:
            raise Conflict("There is an environment of that name. Choose another, or call list_environments.") from None
        return _environment(row)


def _environment(row: EnvironmentRow) -> Environment:
    return Environment.model_validate(row, from_attributes=True)
