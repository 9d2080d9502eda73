"""Paged lists. A `page_token` is opaque to callers and contains the identifier after which the next page starts."""

from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, Field
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute

from gatehouse.directory.directory import Directory
from gatehouse.directory.errors import DirectoryError
from gatehouse.directory.identifiers import is_identifier
from gatehouse.shared.protocol import base64url

PageT = TypeVar("PageT", bound=BaseModel)

PageToken = Annotated[
    str, Field(min_length=1, max_length=64, description="next_page_token of the previous page; omit for the first.")
]
NextPageToken = Annotated[str | None, Field(description="Token of the next page; null at the end.")]
PageSize = Annotated[int, Field(ge=1, le=100, description="Maximum number of entries in a page, up to 100.")]
DEFAULT_PAGE_SIZE: Final = 50


def _encode(identifier: str) -> str:
    return base64url.encode(identifier.encode())


def _decode(page_token: str, prefix: str) -> str:
    try:
        identifier = base64url.decode(page_token).decode("ascii")
    except ValueError:
        identifier = ""
    if not is_identifier(identifier, prefix):
        raise DirectoryError("This list did not return that page_token. Omit it to start at the beginning.")
    return identifier


async def fetch_page(
    directory: Directory,
    model: type[PageT],
    query: Select[Any],
    key: InstrumentedAttribute[str],
    prefix: str,
    page_token: str | None,
    page_size: int,
) -> PageT:
    """Return one page of a list.

    Args:
        directory: the caller's workspace.
        model: the page: a list of entities, which are read from the rows' attributes, and `next_page_token`.
        query: the whole list, restricted to the workspace.
        key: the column of the rows' identifiers. The list is sorted by it, so the oldest rows come first.
        prefix: the prefix of these identifiers.
        page_token: `next_page_token` of the previous page; None for the first.
        page_size: the maximum number of entries.

    Raises:
        DirectoryError: the page token is invalid.
        NoWorkspace: the workspace does not exist.
    """
    bounded = query.order_by(key).limit(page_size + 1)
    if page_token is not None:
        try:
            bounded = bounded.where(key > _decode(page_token, prefix))
        except DirectoryError:
            await directory.require_workspace()
            raise
    rows = (await directory.session.scalars(bounded)).all()
    if not rows:
        await directory.require_workspace()
    page = rows[:page_size]
    entries = next(name for name in model.model_fields if name != "next_page_token")
    last = _encode(getattr(page[-1], key.key)) if len(rows) > page_size else None
    return model.model_validate({entries: page, "next_page_token": last})
