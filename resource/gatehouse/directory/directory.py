"""The directory as one call sees it: a workspace in a transaction, and the queries and pages that all entities share.

A `page_token` is opaque to callers and contains the identifier after which the next page starts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from gatehouse.directory.errors import Conflict, DirectoryError, LimitReached, NotFound, NoWorkspace
from gatehouse.directory.identifiers import is_identifier, new_identifier
from gatehouse.directory.models import Base, WorkspaceRow
from gatehouse.resourceserver.catalogue import ProviderCall, provider
from gatehouse.shared.protocol.claims import WORKSPACE_CLAIM, AccessClaims
from gatehouse.shared.protocol.encoding import decode_base64url, encode_base64url

RowT = TypeVar("RowT", bound=Base)
PageT = TypeVar("PageT", bound=BaseModel)
SelectT = TypeVar("SelectT", bound=Select[Any])

MAX_PER_ENVIRONMENT: Final = 100
"""Roles in an environment; also scopes, connections, MCP servers, and redirect URIs."""

PageToken = Annotated[
    str, Field(min_length=1, max_length=64, description="next_page_token of the previous page; omit for the first.")
]
NextPageToken = Annotated[str | None, Field(description="Token of the next page; null at the end.")]
PageSize = Annotated[int, Field(ge=1, le=100, description="Maximum number of entries in a page, up to 100.")]
DEFAULT_PAGE_SIZE: Final = 50


_WORKSPACE: Final = select(WorkspaceRow.workspace_id).where(WorkspaceRow.workspace_id == bindparam("workspace_id"))


class Entity(BaseModel):
    """An entity as tools return it. `model_validate(row)` reads it from the attributes of its row."""

    model_config = ConfigDict(from_attributes=True)


@dataclass(frozen=True, slots=True)
class Directory:
    """One workspace within one transaction. Queries must be restricted to the workspace."""

    session: Session
    claims: AccessClaims
    workspace_id: str
    """The workspace that the claims name. Whether it exists is checked where a query does not show it."""
    now: float
    """Seconds since the epoch."""

    def new_identifier(self, prefix: str) -> str:
        """Return a new identifier with a prefix such as `env`."""
        return new_identifier(prefix, self.now)

    def require_workspace(self, *, lock: bool = False) -> None:
        """Check that the workspace exists, and lock its row if `lock` is set. Raises NoWorkspace.

        Every row of the directory belongs to a workspace, so a query that finds one needs no check.
        """
        query = locked(_WORKSPACE) if lock else _WORKSPACE
        if self.session.scalar(query, {"workspace_id": self.workspace_id}) is None:
            raise NoWorkspace(self.claims)

    def find(self, query: Select[RowT], entity: str, list_tool: str, **parameters: str) -> RowT:
        """Return the row of a query.

        Args:
            query: restricted to the workspace.
            entity: what it selects, for the error message.
            list_tool: the tool that lists these entities.
            parameters: the parameters of the query.

        Raises:
            NotFound: there is no row.
            NoWorkspace: the workspace does not exist.
        """
        row = self.session.scalar(query, parameters)
        if row is None:
            self.require_workspace()
            raise NotFound(entity, list_tool)
        return row

    def insert(self, conflict: str, *rows: Base) -> None:
        """Insert rows. Raises Conflict with the given message if they violate a constraint."""
        self.session.add_all(rows)
        self.flush(conflict)

    def flush(self, conflict: str) -> None:
        """Write pending changes. Raises Conflict with the given message if they violate a constraint."""
        try:
            self.session.flush()
        except IntegrityError:
            raise Conflict(conflict) from None

    def require_room(self, owner: InstrumentedAttribute[str], identifier: str, limit: int, things: str) -> None:
        """Check that there are fewer than `limit` rows whose `owner` is the identifier. The owner must be locked.

        Raises:
            LimitReached: there are `limit` rows.
        """
        if (self.session.scalar(select(func.count()).where(owner == identifier)) or 0) >= limit:
            raise LimitReached(limit, things)


def locked(query: SelectT) -> SelectT:
    """Serialize transactions that change the selected row or its children. SQLite serializes all writers anyway."""
    return query.with_for_update(key_share=True, of=query.column_descriptions[0]["entity"])


class Listing(Generic[PageT]):
    """A list of entities, which callers read in pages, the oldest first.

    Its statements are built once: to build one costs half as much as to run it. They select columns, not rows of a
    session, because nothing changes what was listed.
    """

    def __init__(
        self,
        page: type[PageT],
        owner: InstrumentedAttribute[Any],
        key: InstrumentedAttribute[str],
        prefix: str,
        query: Select[Any] | None = None,
    ) -> None:
        """Build the statements.

        Args:
            page: a list of entities, which are read from the columns of the query, and `next_page_token`.
            owner: the column with the identifier of what the entities belong to.
            key: the column of the rows' identifiers, by which the list is sorted.
            prefix: the prefix of these identifiers.
            query: selects the columns. By default, all columns of the table that the key is in.
        """
        if query is None:
            query = select(*key.class_.__table__.c)
        self._page = page
        self._entries = next(name for name in page.model_fields if name != "next_page_token")
        self._key = key.key
        self._prefix = prefix
        self._first = query.where(owner == bindparam("owner")).order_by(key).limit(bindparam("rows"))
        self._next = self._first.where(key > bindparam("after"))

    def read(self, directory: Directory, owner: str, page_token: str | None, page_size: int) -> PageT:
        """Return one page.

        Args:
            directory: the caller's workspace.
            owner: the identifier of what the entities belong to, which must be in the workspace.
            page_token: `next_page_token` of the previous page; None for the first.
            page_size: the maximum number of entries.

        Raises:
            DirectoryError: the page token is invalid.
            NoWorkspace: the workspace does not exist.
        """
        query, parameters = self._first, {"owner": owner, "rows": page_size + 1}
        if page_token is not None:
            try:
                after = _read_page_token(page_token, self._prefix)
            except DirectoryError:
                directory.require_workspace()
                raise
            query, parameters = self._next, {**parameters, "after": after}
        rows = directory.session.execute(query, parameters).all()
        if not rows:
            directory.require_workspace()
        page = rows[:page_size]
        last = encode_base64url(getattr(page[-1], self._key).encode()) if len(rows) > page_size else None
        return self._page.model_validate({self._entries: page, "next_page_token": last})


def _read_page_token(page_token: str, prefix: str) -> str:
    try:
        identifier = decode_base64url(page_token).decode("ascii")
    except ValueError:
        identifier = ""
    if not is_identifier(identifier, prefix):
        raise DirectoryError("This list did not return that page_token. Omit it to start at the beginning.")
    return identifier


def change_row(row: Base, changes: Mapping[str, object]) -> None:
    """Set the attributes that are not None in `changes`. Raises DirectoryError if all are None."""
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise DirectoryError(f"There is nothing to change. Set at least one of {', '.join(changes)}.")
    for name, value in given.items():
        setattr(row, name, value)


@provider(transactional=True, public_errors=(DirectoryError,), audited=is_identifier)
def open_directory(call: ProviderCall) -> Directory:
    """Open the workspace that the caller's token names.

    Raises:
        NoWorkspace: the token names none. Whether the workspace exists is checked by the tool's first query.
    """
    workspace_id = call.claims.static.get(WORKSPACE_CLAIM)
    if workspace_id is None:
        raise NoWorkspace(call.claims)
    return Directory(call.session, call.claims, workspace_id, call.now)
