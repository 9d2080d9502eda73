"""What every entity does alike: find a row or say that there is none, add one or say what it would contradict."""

from collections.abc import Mapping
from typing import Final, TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from gatehouse.directory.errors import Conflict, DirectoryError, LimitReached, NotFound
from gatehouse.directory.models import Base

RowT = TypeVar("RowT", bound=Base)

MAX_PER_ENVIRONMENT: Final = 100
"""Settings of one kind in an environment: roles, scopes, connections, MCP servers, redirect URIs."""


async def find_row(session: AsyncSession, query: Select[RowT], entity: str, list_tool: str) -> RowT:
    """Return the row of a query that is bound to the caller's workspace. Raises NotFound."""
    row = await session.scalar(query)
    if row is None:
        raise NotFound(entity, list_tool)
    return row


def to_change(query: Select[RowT]) -> Select[RowT]:
    """Let the transactions that change a row, or what belongs to it, take turns. SQLite's do so anyway."""
    return query.with_for_update(key_share=True, of=query.column_descriptions[0]["entity"])


async def require_room(
    session: AsyncSession, owner: InstrumentedAttribute[str], identifier: str, limit: int, things: str
) -> None:
    """Refuse one more row whose `owner` is the identifier where there are `limit`. The owner must be locked.

    Raises:
        LimitReached: there are.
    """
    if (await session.scalar(select(func.count()).where(owner == identifier)) or 0) >= limit:
        raise LimitReached(limit, things)


async def add_row(session: AsyncSession, row: Base, conflict: str) -> None:
    """Add a row. Raises Conflict with the text when the database has one that it contradicts."""
    session.add(row)
    await write_changes(session, conflict)


def change_row(row: Base, changes: Mapping[str, object]) -> None:
    """Set the attributes that are not None in `changes`. Raises DirectoryError when there is none."""
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise DirectoryError(f"There is nothing to change. Give at least one of {', '.join(changes)}.")
    for name, value in given.items():
        setattr(row, name, value)


async def write_changes(session: AsyncSession, conflict: str) -> None:
    """Write what was changed in rows. Raises Conflict, as `add_row` does."""
    try:
        await session.flush()
    except IntegrityError:
        raise Conflict(conflict) from None
