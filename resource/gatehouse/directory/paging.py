"""Lists in pages. The `page_token` is opaque to callers: the identifier that the next page starts after."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from gatehouse.directory.errors import DirectoryError
from gatehouse.directory.identifiers import is_identifier
from gatehouse.shared.protocol import base64url

RowT = TypeVar("RowT")

PageToken = Annotated[
    str, Field(min_length=1, max_length=64, description="next_page_token of the page before; leave out for the first.")
]
NextPageToken = Annotated[str | None, Field(description="Token of the next page; null at the end.")]
PageSize = Annotated[int, Field(ge=1, le=100, description="Entries in a page, 100 at most.")]
DEFAULT_PAGE_SIZE = 50


def _encode(identifier: str) -> str:
    return base64url.encode(identifier.encode())


def _decode(page_token: str, prefix: str) -> str:
    try:
        identifier = base64url.decode(page_token).decode("ascii")
    except ValueError:
        identifier = ""
    if not is_identifier(identifier, prefix):
        raise DirectoryError("page_token is not one that this list returned. Leave it out to start again.")
    return identifier


async def fetch_page(
    session: AsyncSession,
    query: Select[RowT],
    key: InstrumentedAttribute[str],
    prefix: str,
    page_token: str | None,
    page_size: int,
) -> tuple[Sequence[RowT], str | None]:
    """Return one page in the order of `key`, and the token of the next one, or None at the end.

    `key` is the column of the rows' identifiers, which begin with `prefix`.
    """
    bounded: Select[Any] = query.order_by(key).limit(page_size + 1)
    if page_token is not None:
        bounded = bounded.where(key > _decode(page_token, prefix))
    rows = (await session.scalars(bounded)).all()
    page = rows[:page_size]
    return page, _encode(getattr(page[-1], key.key)) if len(rows) > page_size else None
