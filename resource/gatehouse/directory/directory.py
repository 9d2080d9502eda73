"""The directory as one call sees it: one workspace in one transaction, and the queries that all entities share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from gatehouse.directory.errors import Conflict, DirectoryError, LimitReached, NotFound, NoWorkspace
from gatehouse.directory.identifiers import is_identifier, new_identifier
from gatehouse.directory.models import Base, WorkspaceRow
from gatehouse.resourceserver.catalogue import ProviderCall, provider
from gatehouse.shared.protocol.claims import AccessClaims

RowT = TypeVar("RowT", bound=Base)
SelectT = TypeVar("SelectT", bound=Select[Any])

MAX_PER_ENVIRONMENT: Final = 100
"""Roles in an environment; also scopes, connections, MCP servers, and redirect URIs."""


class Entity(BaseModel):
    """An entity as tools return it. `model_validate(row)` reads it from the attributes of its row."""

    model_config = ConfigDict(from_attributes=True)


@dataclass(frozen=True, slots=True)
class Directory:
    """One workspace within one transaction. Queries must be restricted to the workspace."""

    session: AsyncSession
    claims: AccessClaims
    workspace_id: str
    """The workspace that the claims name. Whether it exists is checked where a query does not show it."""
    now: float
    """Seconds since the epoch."""

    def new_identifier(self, prefix: str) -> str:
        """Return a new identifier with a prefix such as `env`."""
        return new_identifier(prefix, self.now)

    async def require_workspace(self, *, lock: bool = False) -> None:
        """Check that the workspace exists, and lock its row if `lock` is set. Raises NoWorkspace.

        Every row of the directory belongs to a workspace, so a query that finds one needs no check.
        """
        query = select(WorkspaceRow.workspace_id).where(WorkspaceRow.workspace_id == self.workspace_id)
        if await self.session.scalar(locked(query) if lock else query) is None:
            raise NoWorkspace(self.claims)

    async def find(self, query: Select[RowT], entity: str, list_tool: str) -> RowT:
        """Return the row of a query.

        Args:
            query: restricted to the workspace.
            entity: what it selects, for the error message.
            list_tool: the tool that lists these entities.

        Raises:
            NotFound: there is no row.
            NoWorkspace: the workspace does not exist.
        """
        row = await self.session.scalar(query)
        if row is None:
            await self.require_workspace()
            raise NotFound(entity, list_tool)
        return row

    async def insert(self, conflict: str, *rows: Base) -> None:
        """Insert rows. Raises Conflict with the given message if they violate a constraint."""
        self.session.add_all(rows)
        await self.flush(conflict)

    async def flush(self, conflict: str) -> None:
        """Write pending changes. Raises Conflict with the given message if they violate a constraint."""
        try:
            await self.session.flush()
        except IntegrityError:
            raise Conflict(conflict) from None

    async def require_room(self, owner: InstrumentedAttribute[str], identifier: str, limit: int, things: str) -> None:
        """Check that there are fewer than `limit` rows whose `owner` is the identifier. The owner must be locked.

        Raises:
            LimitReached: there are `limit` rows.
        """
        if (await self.session.scalar(select(func.count()).where(owner == identifier)) or 0) >= limit:
            raise LimitReached(limit, things)


def locked(query: SelectT) -> SelectT:
    """Serialize transactions that change the selected row or its children. SQLite serializes all writers anyway."""
    return query.with_for_update(key_share=True, of=query.column_descriptions[0]["entity"])


def change_row(row: Base, changes: Mapping[str, object]) -> None:
    """Set the attributes that are not None in `changes`. Raises DirectoryError if all are None."""
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise DirectoryError(f"There is nothing to change. Set at least one of {', '.join(changes)}.")
    for name, value in given.items():
        setattr(row, name, value)


@provider(transactional=True, public_errors=(DirectoryError,), audited=is_identifier)
async def open_directory(call: ProviderCall) -> Directory:
    """Open the workspace that the caller's token names.

    Raises:
        NoWorkspace: the token names none. A workspace that does not exist is found out by the tool's first query.
    """
    if call.claims.workspace_id is None:
        raise NoWorkspace(call.claims)
    return Directory(call.session, call.claims, call.claims.workspace_id, call.now)
